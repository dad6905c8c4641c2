"""The content-addressed cache on the local disk: one read-only file per blob."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trtforge.canonical import sha256_file
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.store.layout import blob_key
from trtforge.store.partial import link_or_copy, partial_file, resumable_file
from trtforge.store.transfer import file_changed

_READ_ONLY = 0o444
_log = logging.getLogger(__name__)


class BlobCache:
    """Blobs under `root`, by the keys they have in the bucket.

    Entries may be hard-linked into many directories and are therefore read-only (0444): who
    needs to change such a file makes a copy first. Processes may share a cache.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the blob lies, if it is there."""
        return self.root / blob_key(sha256)

    def find(self, sha256: str, size_bytes: int, *, verify: bool = False) -> Path | None:
        """The cached blob, or None. An entry of the wrong size is removed.

        Args:
            verify: Hash the entry too, and remove it when the digest is wrong.
        """
        path = self.path(sha256)
        try:
            right = path.stat().st_size == size_bytes
            if right and not (verify and sha256_file(path) != sha256):
                return path
        except FileNotFoundError:
            return None
        _log.warning("removing the damaged cache entry %s", path)
        path.unlink(missing_ok=True)
        return None

    def add(self, path: Path, ref: FileRef, on_progress: OnProgress = ignore) -> None:
        """Take a produced file in: a hard link, or a copy when the cache is on another disk.

        The file is hashed first. With a hard link it becomes read-only under its own name too.

        Raises:
            FileChangedError: The file is not what `ref` says.
            DiskFullError: No room for a copy.
        """
        if self.find(ref.sha256, ref.size_bytes):
            return
        if not has_size(path, ref.size_bytes) or sha256_file(path, on_progress) != ref.sha256:
            raise file_changed(path)
        entry = self.path(ref.sha256)
        link_or_copy(path.resolve(), entry)
        entry.chmod(_READ_ONLY)

    @contextmanager
    def resuming(self, ref: FileRef) -> Iterator[BinaryIO | None]:
        """Like `writing`, for one writer at a time, who goes on with what the last one left.

        The block gets None when another writer has made the entry while this one waited.
        """
        entry = self.path(ref.sha256)
        with resumable_file(
            entry, _READ_ONLY, wanted=lambda: not has_size(entry, ref.size_bytes)
        ) as stream:
            yield stream

    @contextmanager
    def writing(self, sha256: str) -> Iterator[BinaryIO]:
        """Write the entry; it appears when the block ends without an exception."""
        with partial_file(self.path(sha256), _READ_ONLY) as stream:
            yield stream


def has_size(path: Path, size_bytes: int) -> bool:
    """Whether there is a regular file of exactly this size."""
    return path.is_file() and path.stat().st_size == size_bytes
