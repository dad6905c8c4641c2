"""A file whose SHA-256 is known the moment it is written."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from trtforge.files import FileRef

PIECE_BYTES = 1 << 20
_PIECES = 8
_SYNC_EVERY_BYTES = 32 << 20


class HashedFile:
    """Writes a new file front to back; hashing and the disk work meanwhile, in two threads.

    Data travel in a few reused pieces: `take()` one, fill it, `put()` it. The disk is asked to
    catch up every 32 MiB, so that the final sync finds little left to do. `finish()` waits for
    both. Without `finish()` the file is incomplete and the caller removes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._size_bytes = 0
        self._unsynced_bytes = 0
        self._state = hashlib.sha256()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(_PIECES):
            self._free.put(memoryview(bytearray(PIECE_BYTES)))
        self._hasher = ThreadPoolExecutor(1, "sha256")
        self._syncer = ThreadPoolExecutor(1, "fdatasync")
        self._syncing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hasher.shutdown(cancel_futures=True)
        self._syncer.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def take(self) -> memoryview:
        """A piece of `PIECE_BYTES` to fill; waits until one has been hashed."""
        return self._free.get()

    def put(self, piece: memoryview, size_bytes: int) -> None:
        """Write the first `size_bytes` of a taken piece; the piece is the file's again.

        Raises:
            OSError: The disk is full or broken, as noticed by this or an earlier write.
        """
        self._hasher.submit(self._hash, piece, size_bytes)
        done = 0
        while done < size_bytes:
            done += os.write(self._descriptor, piece[done:size_bytes])
        self._size_bytes += size_bytes
        self._unsynced_bytes += size_bytes
        if self._unsynced_bytes >= _SYNC_EVERY_BYTES and self._is_synced():
            self._unsynced_bytes = 0
            self._syncing = self._syncer.submit(os.fdatasync, self._descriptor)

    def write(self, data: bytes) -> None:
        """Write bytes that are at hand already."""
        for start in range(0, len(data), PIECE_BYTES):
            part = data[start : start + PIECE_BYTES]
            piece = self.take()
            piece[: len(part)] = part
            self.put(piece, len(part))

    def finish(self) -> FileRef:
        """Sync the file to disk; its name (without directory), size and digest."""
        if self._syncing is not None:
            # The system reports a failed write once, and may have told only this call.
            self._syncing.result()
        os.fsync(self._descriptor)
        self._hasher.shutdown()
        return FileRef(self._path.name, self._size_bytes, self._state.hexdigest())

    def _is_synced(self) -> bool:
        """Whether the last background sync is over; raises what went wrong in it."""
        if self._syncing is None:
            return True
        if self._syncing.done():
            self._syncing.result()
            return True
        return False

    def _hash(self, piece: memoryview, size_bytes: int) -> None:
        self._state.update(piece[:size_bytes])
        self._free.put(piece)
