"""One engine as a tar file, for sites that the bucket cannot be reached from.

The archive holds `manifest.json`, as it is stored, then what is kept with the engine (verdicts,
overrides, benchmarks and their runs: `trtforge.store.attached`), then each file once, as
`blobs/sha256/ab/<hex>` in the order of their digests. All owners, times and modes are fixed: the
same engine, of which nothing new is known, gives the same bytes. Any tar program reads it. Archives
of before have the manifest and the files alone.

Reading trusts nothing: only plain files are taken, with exactly the names that belong to the engine
at the front, and blobs of exactly the sizes it calls for, so nothing in an archive can name a place
to write to. Headers are read one by one instead of by `tarfile.open`, which would follow extended
headers of any size. Aliases do not travel.
"""

import hashlib
import itertools
import logging
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.store.announce import announced
from trtforge.store.attached import Arriving, AttachedInvalidError, attached
from trtforge.store.gates import GateRecords
from trtforge.store.layout import BLOBS, blob_key
from trtforge.store.manifests import Manifest
from trtforge.store.partial import partial_file
from trtforge.store.records import parse_record
from trtforge.store.streaming import file_chunks, stored_chunks
from trtforge.store.transfer import ByteMeter

if TYPE_CHECKING:
    from trtforge.store import Store

_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 16 << 20
# Of raw data and pages, which are read whole.
_ATTACHED_BYTES = 1 << 30
_NAME_BYTES = tarfile.LENGTH_NAME
_CHUNK_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_log = logging.getLogger("trtforge")


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
    records = GateRecords(store.bucket).of(manifest.engine_id)
    blobs = _blobs(manifest, (ref for record in records for ref in record.evidence))
    meter = ByteMeter(f"writing {dest.name}", _size_bytes(blobs), on_progress)
    with partial_file(dest) as stream:
        data = manifest.to_bytes()
        _add(stream, _MANIFEST, len(data), [data])
        for name, key in attached(store.bucket, manifest.engine_id):
            _add_attached(store, stream, name, key)
        for ref in blobs:
            _add(stream, blob_key(ref.sha256), ref.size_bytes, _metered(_chunks(store, ref), meter))
        stream.write(bytes(2 * _BLOCK))
        return stream.tell()


def import_engine(store: "Store", archive: Path, on_progress: OnProgress = ignore) -> Manifest:
    """Publish the engine of an archive, as if it had been built here.

    Every file is verified into the local cache before the first one is uploaded.

    Raises:
        ArchiveInvalidError: It is not an archive, is damaged, or holds what its manifest does not
            name. Nothing was published.
        ManifestIdError, UnknownFormatError, RecordInvalidError: Of a record in it.
        DiskFullError: No room for its files in the cache.
    """
    try:
        stream = archive.open("rb")
    except OSError as error:
        raise _invalid(archive, f"it cannot be opened ({error.strerror})") from error
    store.cache.root.mkdir(parents=True, exist_ok=True)
    with (
        closing(stream),
        tempfile.TemporaryDirectory(prefix=".import-", dir=store.cache.root) as scratch,
    ):
        members = _members(stream, archive)
        manifest = _read_manifest(members, archive)
        arriving, members = _read_attached(members, manifest, Path(scratch), archive)
        blobs = _blobs(manifest, arriving.evidence)
        meter = ByteMeter(f"reading {archive.name}", _size_bytes(blobs), on_progress)
        wanted = {blob_key(ref.sha256): ref for ref in blobs}
        for name, size_bytes, chunks in members:
            ref = wanted.pop(name, None)
            if ref is None:
                raise _invalid(archive, f"it holds {name!r}, which its manifest does not name")
            if size_bytes != ref.size_bytes:
                raise _invalid(archive, f"{name} has {size_bytes} bytes, not {ref.size_bytes}")
            _keep(store, ref, _metered(chunks, meter), archive)
        if wanted:
            raise _invalid(archive, f"it lacks {len(wanted)} files, such as {min(wanted)}")
        with announced(store.bucket, engine_ids=[manifest.engine_id], files=arriving.evidence):
            for ref in blobs:
                store.put_file(store.cache.path(ref.sha256), ref, on_progress)
            # The verdicts first: at no moment is the engine there without them.
            arriving.keep(store.bucket)
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


def _read_attached(
    members: Iterator[Member], manifest: Manifest, scratch: Path, archive: Path
) -> tuple[Arriving, Iterator[Member]]:
    """What is kept with the engine, as far as the first blob; and the members from there on."""
    arriving = Arriving(manifest.engine_id)
    for number, member in enumerate(members):
        name, size_bytes, chunks = member
        if name.startswith(BLOBS):
            return arriving, itertools.chain([member], members)
        if size_bytes > _ATTACHED_BYTES:
            raise _invalid(archive, f"{name} has {size_bytes} bytes")
        file = scratch / str(number)
        with file.open("wb") as copy:
            copy.writelines(chunks)
        try:
            arriving.add(name, file)
        except AttachedInvalidError as error:
            raise _invalid(archive, f"it holds {name!r}: {error.problem}") from error
    return arriving, members


def _keep(store: "Store", ref: FileRef, chunks: Iterator[bytes], archive: Path) -> None:
    """Write a blob into the cache, if its digest is right."""
    state = hashlib.sha256()
    with store.cache.writing(ref.sha256) as entry:
        for chunk in chunks:
            state.update(chunk)
            entry.write(chunk)
        if state.hexdigest() != ref.sha256:
            raise _invalid(archive, f"the bytes of {blob_key(ref.sha256)} do not match its name")


def _add_attached(store: "Store", stream: BinaryIO, name: str, key: str) -> None:
    if len(name.encode()) > _NAME_BYTES:
        # No name of trtforge's is as long; readers take no extended headers.
        _log.warning("%s is left out: its name is too long for a tar file", store.bucket.uri(key))
        return
    stored = store.bucket.get(key)
    if stored:  # else removed since the listing
        _add(stream, name, len(stored.data), [stored.data])


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


def _blobs(manifest: Manifest, evidence: Iterable[FileRef]) -> list[FileRef]:
    """The files of an engine and of what is kept with it, each content once."""
    refs = (*manifest.core.files, *manifest.evidence, *evidence)
    by_digest = {ref.sha256: ref for ref in refs}
    return [by_digest[sha256] for sha256 in sorted(by_digest)]


def _size_bytes(blobs: Iterable[FileRef]) -> int:
    return sum(ref.size_bytes for ref in blobs)


def _invalid(archive: Path, problem: str) -> ArchiveInvalidError:
    return ArchiveInvalidError(
        f"this is not an archive of an engine: {problem}",
        field="archive",
        value=str(archive),
        remedy="Nothing was published; write it again with `trtforge store export`, or copy it "
        "again",
    )
