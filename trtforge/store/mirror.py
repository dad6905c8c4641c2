"""Copies of engines in a second bucket, of the same service or another one.

Only what is missing there is copied, and every file is verified on its way, through the local
cache; so a mirror that was interrupted goes on where it was when it is started again.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.store.attached import copy_attached
from trtforge.store.gates import GateRecords
from trtforge.store.layout import AliasName
from trtforge.store.manifests import Manifest

if TYPE_CHECKING:
    from trtforge.store import Store


class SameBucketError(InputError):
    """The second bucket is the first one."""


@dataclass(frozen=True)
class Mirrored:
    """What came to the second bucket with one engine; `published` is False when it was there."""

    engine_id: str
    published: bool
    copied_files: int
    copied_bytes: int
    present_bytes: int
    aliases: tuple[AliasName, ...]


def mirror_engine(
    source: "Store",
    dest: "Store",
    manifest: Manifest,
    aliases: Iterable[AliasName] = (),
    *,
    by: str,
    on_progress: OnProgress = ignore,
) -> Mirrored:
    """Copy one engine: missing blobs, the manifest, what gates said, benchmarks, then the aliases.

    Raises:
        SameBucketError: `dest` is `source`.
        BlobMissingError, BlobCorruptError: `source` does not hold the engine as published.
    """
    records = GateRecords(source.bucket)
    here, there = source.bucket, dest.bucket
    if (here.endpoint_url, here.name) == (there.endpoint_url, there.name):
        raise SameBucketError(
            "this is the bucket to copy from",
            field="to_bucket",
            value=there.name,
            remedy="Name another bucket, or another endpoint",
        )
    files: Sequence[FileRef] = list(
        {
            ref.sha256: ref
            for ref in (
                *manifest.core.files,
                *manifest.evidence,
                *(ref for told in records.of(manifest.engine_id) for ref in told.evidence),
            )
        }.values()
    )
    missing = dest.blobs.missing(files)
    source.cache.root.mkdir(parents=True, exist_ok=True)
    # Beside the cache, so that a file in it is a hard link to the entry.
    with tempfile.TemporaryDirectory(prefix=".mirror-", dir=source.cache.root) as scratch:
        for ref in missing:
            copy = Path(scratch) / ref.sha256
            source.get_file(ref.sha256, ref.size_bytes, copy, on_progress, verify=True)
            dest.put_file(copy, ref, on_progress)
            copy.unlink()
    new = not dest.manifests.exists(manifest.engine_id)
    dest.publish_manifest(manifest)
    copy_attached(here, there, manifest.engine_id)
    moved = [n for n in aliases if dest.set_alias(n, manifest.engine_id, by=by).moved]
    copied_bytes = sum(ref.size_bytes for ref in missing)
    return Mirrored(
        engine_id=manifest.engine_id,
        published=new,
        copied_files=len(missing),
        copied_bytes=copied_bytes,
        present_bytes=sum(ref.size_bytes for ref in files) - copied_bytes,
        aliases=tuple(moved),
    )
