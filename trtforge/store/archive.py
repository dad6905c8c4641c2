"""One engine as a tar file, for sites that the bucket cannot be reached from.

The archive holds `manifest.json`, as it is stored, then each file of the engine once, as
`blobs/sha256/ab/<hex>` in the order of their digests. All owners, times and modes are fixed: the
same engine gives the same bytes. Any tar program reads it.

Reading trusts nothing: only plain files are taken, with exactly the names and sizes that the
manifest at the front calls for, so nothing in an archive can name a place to write to. Headers are
read one by one instead of by `tarfile.open`, which would follow extended headers of any size.
Aliases do not travel.
"""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.store.layout import blob_key
from trtforge.store.manifests import Manifest
from trtforge.store.partial import partial_file
from trtforge.store.records import parse_record
from trtforge.store.streaming import file_chunks, stored_chunks
from trtforge.store.transfer import ByteMeter

if TYPE_CHECKING:
    from trtforge.store import Store

_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


class ArchiveInvalidError(InputError):
    """A file is not an archive that `export` wrote, or is damaged or cut off."""


def export_engine(
    store: "Store", manifest: Manifest, dest: Path, on_progress: OnProgress = ignore
) -> int:
    """Write an engine as the archive `dest`, which appears when it is whole; returns its bytes.

    Files come from the local cache where it has them, and are verified on the way either way.

    Raises:
        BlobMissingError, BlobCorruptError: The store does not hold the engine as published.
        DiskFullError: No room for it.
    """
    meter = ByteMeter(f"writing {dest.name}", _size_bytes(manifest), on_progress)
    with partial_file(dest) as stream:
        data = manifest.to_bytes()
        _add(stream, _MANIFEST, len(data), [data])
        for ref in _blobs(manifest):
            _add(stream, blob_key(ref.sha256), ref.size_bytes, _metered(_chunks(store, ref), meter))
        stream.write(bytes(2 * _BLOCK))
        return stream.tell()


def import_engine(store: "Store", archive: Path, on_progress: OnProgress = ignore) -> Manifest:
    """Publish the engine of an archive, as if it had been built here.

    Every file is verified into the local cache before the first one is uploaded.

    Raises:
        ArchiveInvalidError: It is not an archive, is damaged, or holds what its manifest does not
            name. Nothing was published.
        ManifestIdError, UnknownFormatError, RecordInvalidError: Of the manifest in it.
        DiskFullError: No room for its files in the cache.
    """
    try:
        stream = archive.open("rb")
    except OSError as error:
        raise _invalid(archive, f"it cannot be opened ({error.strerror})") from error
    with closing(stream):
        members = _members(stream, archive)
        manifest = _read_manifest(members, archive)
        meter = ByteMeter(f"reading {archive.name}", _size_bytes(manifest), on_progress)
        wanted = {blob_key(ref.sha256): ref for ref in _blobs(manifest)}
        for name, size_bytes, chunks in members:
            ref = wanted.pop(name, None)
            if ref is None:
                raise _invalid(archive, f"it holds {name!r}, which its manifest does not name")
            if size_bytes != ref.size_bytes:
                raise _invalid(archive, f"{name} has {size_bytes} bytes, not {ref.size_bytes}")
            _keep(store, ref, _metered(chunks, meter), archive)
    if wanted:
        raise _invalid(archive, f"it lacks {len(wanted)} files, such as {min(wanted)}")
    for ref in _blobs(manifest):
        store.put_file(store.cache.path(ref.sha256), ref, on_progress)
    return store.publish_manifest(manifest)


Member = tuple[str, int, Iterator[bytes]]


def _members(stream: BinaryIO, archive: Path) -> Iterator[Member]:
    """The plain files of a tar, in order; each one's bytes must be used up before the next."""
    while True:
        block = _exactly(stream, _BLOCK, archive)
        if not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise _invalid(archive, "it is not a tar file, or is damaged") from error
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or header.size < 0:
            raise _invalid(archive, f"{header.name!r} in it is not a plain file")
        chunks = _contents(stream, header.size, archive)
        yield header.name, header.size, chunks
        for _ in chunks:
            pass


def _contents(stream: BinaryIO, size_bytes: int, archive: Path) -> Iterator[bytes]:
    left = size_bytes
    while left:
        chunk = _exactly(stream, min(left, _CHUNK_BYTES), archive)
        left -= len(chunk)
        yield chunk
    _exactly(stream, -size_bytes % _BLOCK, archive)


def _exactly(stream: BinaryIO, count: int, archive: Path) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise _invalid(archive, "it is cut off")
    return data


def _read_manifest(members: Iterator[Member], archive: Path) -> Manifest:
    first = next(members, None)
    if first is None or first[0] != _MANIFEST or first[1] > _MANIFEST_BYTES:
        raise _invalid(archive, f"it does not begin with {_MANIFEST}")
    return parse_record(Manifest, b"".join(first[2]), f"{archive}:{_MANIFEST}")


def _keep(store: "Store", ref: FileRef, chunks: Iterator[bytes], archive: Path) -> None:
    """Write a blob into the cache, if its digest is right."""
    state = hashlib.sha256()
    with store.cache.writing(ref.sha256) as entry:
        for chunk in chunks:
            state.update(chunk)
            entry.write(chunk)
        if state.hexdigest() != ref.sha256:
            raise _invalid(archive, f"the bytes of {blob_key(ref.sha256)} do not match its name")


def _add(stream: BinaryIO, name: str, size_bytes: int, chunks: Iterable[bytes]) -> None:
    header = tarfile.TarInfo(name)
    header.size = size_bytes
    header.mode = 0o644
    # GNU's form holds any size in the header itself.
    stream.write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
    for chunk in chunks:
        stream.write(chunk)
    stream.write(bytes(-size_bytes % _BLOCK))


def _chunks(store: "Store", ref: FileRef) -> Iterator[bytes]:
    cached = store.cache.find(ref.sha256, ref.size_bytes, verify=True)
    return file_chunks(cached) if cached else stored_chunks(store.bucket, ref)


def _metered(chunks: Iterable[bytes], meter: ByteMeter) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        meter.add(len(chunk))


def _blobs(manifest: Manifest) -> list[FileRef]:
    """The files of an engine, each content once."""
    by_digest = {ref.sha256: ref for ref in (*manifest.core.files, *manifest.evidence)}
    return [by_digest[sha256] for sha256 in sorted(by_digest)]


def _size_bytes(manifest: Manifest) -> int:
    return sum(ref.size_bytes for ref in _blobs(manifest))


def _invalid(archive: Path, problem: str) -> ArchiveInvalidError:
    return ArchiveInvalidError(
        f"this is not an archive of an engine: {problem}",
        field="archive",
        value=str(archive),
        remedy="Nothing was published; write it again with `trtforge store export`, or copy it "
        "again",
    )
