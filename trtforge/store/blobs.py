"""Immutable bytes, by their SHA-256: single blobs and whole file sets, up and down."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trtforge.errors import InputError, ServiceError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.store.cache import BlobCache, has_size
from trtforge.store.download import RANGE_BYTES, download
from trtforge.store.layout import blob_key
from trtforge.store.objects import Bucket
from trtforge.store.partial import link_or_copy, partial_directory, partial_file
from trtforge.store.transfer import PART_BYTES, ByteMeter, file_changed
from trtforge.store.upload import put_whole, upload

_FILES_AT_ONCE = 4
_HEADS_AT_ONCE = 16


class UploadNotKeptError(ServiceError):
    """The service accepted an upload but does not hold it with its size and metadata."""


class DestinationTakenError(InputError):
    """A directory to be filled has something in it already."""


@dataclass(frozen=True)
class PutSummary:
    """What `put_files` sent, and what was in the store already."""

    uploaded_files: int
    uploaded_bytes: int
    skipped_files: int
    skipped_bytes: int


class Blobs:
    """The blobs of a bucket, seen through a local cache."""

    def __init__(self, bucket: Bucket, cache: BlobCache, part_bytes: int = PART_BYTES) -> None:
        self._bucket = bucket
        self._cache = cache
        self._part_bytes = part_bytes

    def has(self, ref: FileRef) -> bool:
        """Whether the bucket holds the blob, with this size and the digest in its metadata."""
        head = self._bucket.head(blob_key(ref.sha256))
        return (
            head is not None
            and head.size_bytes == ref.size_bytes
            and head.metadata.get("sha256") == ref.sha256
        )

    def missing(self, files: Sequence[FileRef]) -> list[FileRef]:
        """Those of `files` whose blob the bucket does not hold."""
        with ThreadPoolExecutor(_HEADS_AT_ONCE) as pool:
            return [f for f, held in zip(files, pool.map(self.has, files), strict=True) if not held]

    def put_file(self, path: Path, ref: FileRef, on_progress: OnProgress = ignore) -> bool:
        """See `Store.put_file`."""
        return self._put(path, ref, ByteMeter(f"uploading {ref.path}", ref.size_bytes, on_progress))

    def put_cached(self, ref: FileRef) -> bool:
        """Upload a blob from the cache; False when the cache has not got it."""
        entry = self._cache.find(ref.sha256, ref.size_bytes, verify=True)
        if entry is not None:
            self.put_file(entry, ref)
        return entry is not None

    def put_bytes(self, data: bytes, path: str) -> FileRef:
        """See `Store.put_bytes`."""
        ref = FileRef(path, len(data), hashlib.sha256(data).hexdigest())
        if not self.has(ref):
            put_whole(self._bucket, ref, data)
            self._check_kept(ref)
        return ref

    def put_files(
        self, directory: Path, files: Sequence[FileRef], on_progress: OnProgress = ignore
    ) -> PutSummary:
        """See `Store.put_files`."""
        blobs = list({ref.sha256: ref for ref in files}.values())
        if not blobs:
            return PutSummary(0, 0, 0, 0)
        total = sum(ref.size_bytes for ref in blobs)
        meter = ByteMeter(f"uploading {len(blobs)} files", total, on_progress)
        for ref in blobs:
            if not has_size(directory / ref.path, ref.size_bytes):
                raise file_changed(directory / ref.path)
        # What is there already costs one small request each, and its file is not even read.
        missing = self.missing(blobs)
        meter.add(total - sum(ref.size_bytes for ref in missing))
        uploaded = self._each(missing, lambda ref: self._put(directory / ref.path, ref, meter))
        sent = [ref.size_bytes for ref in missing if uploaded[ref]]
        return PutSummary(len(sent), sum(sent), len(blobs) - len(sent), total - sum(sent))

    def get_file(
        self,
        sha256: str,
        size_bytes: int,
        dest: Path,
        on_progress: OnProgress = ignore,
        *,
        verify: bool = False,
    ) -> None:
        """See `Store.get_file`."""
        meter = ByteMeter(f"downloading {dest.name}", size_bytes, on_progress)
        self._get_cached(FileRef(dest.name, size_bytes, sha256), dest, meter, verify)

    def materialise(
        self,
        files: Sequence[FileRef],
        dest: Path,
        *,
        use_cache: bool = True,
        on_progress: OnProgress = ignore,
    ) -> None:
        """See `Store.materialise`."""
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise DestinationTakenError(
                "there is something here already",
                field="dest",
                value=str(dest),
                remedy="Name a directory that does not exist or is empty",
            )
        total = sum(ref.size_bytes for ref in files)
        meter = ByteMeter(f"downloading {len(files)} files", total, on_progress)
        with partial_directory(dest) as directory:

            def fetch(ref: FileRef) -> bool:
                if use_cache:
                    self._get_cached(ref, directory / ref.path, meter, verify=False)
                else:
                    with partial_file(directory / ref.path) as stream:
                        self._download(ref, stream, meter)
                return True

            self._each(files, fetch)

    def _put(self, path: Path, ref: FileRef, meter: ByteMeter) -> bool:
        if not has_size(path, ref.size_bytes):
            raise file_changed(path)
        if self.has(ref):
            meter.add(ref.size_bytes)
            return False
        upload(self._bucket, path, ref, meter, self._part_bytes, lambda: self.has(ref))
        self._check_kept(ref)
        return True

    def _check_kept(self, ref: FileRef) -> None:
        if not self.has(ref):
            raise UploadNotKeptError(
                f"{self._bucket.uri(blob_key(ref.sha256))} was accepted, but is not held with its "
                "size and its sha256 metadata",
                field="path",
                value=ref.path,
                remedy="Use an object storage that keeps user metadata, and look at its log",
            )

    def _get_cached(self, ref: FileRef, dest: Path, meter: ByteMeter, verify: bool) -> None:
        entry = self._cache.find(ref.sha256, ref.size_bytes, verify=verify)
        if entry:
            meter.add(ref.size_bytes)
        else:
            with self._cache.resuming(ref) as stream:
                if stream is None:
                    meter.add(ref.size_bytes)
                else:
                    self._download(ref, stream, meter)
            entry = self._cache.path(ref.sha256)
        link_or_copy(entry, dest)

    def _download(self, ref: FileRef, stream: BinaryIO, meter: ByteMeter) -> None:
        range_bytes = min(RANGE_BYTES, self._part_bytes)
        download(self._bucket, ref.sha256, ref.size_bytes, stream, meter, range_bytes)

    def _each(
        self, files: Sequence[FileRef], work: Callable[[FileRef], bool]
    ) -> dict[FileRef, bool]:
        """Do `work` for every file, some small ones at once.

        Files of several parts go one by one: each uses several threads and as many parts' memory.
        """
        small = [ref for ref in files if ref.size_bytes < self._part_bytes]
        large = [ref for ref in files if ref.size_bytes >= self._part_bytes]
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            results = dict(zip(small, pool.map(work, small), strict=True))
        return results | {ref: work(ref) for ref in large}
