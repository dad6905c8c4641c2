"""Files written side by side whose SHA-256 is known the moment they are written."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from trtforge.files import FileRef
from trtforge.write_back import EVERY_BYTES, begin_write_back

BUFFER_BYTES = 2 << 20
_BUFFERS = 24


class HashingCrew:
    """The threads and buffers that the files of one group share.

    Hashing goes on in threads, beside the caller who fills and writes. Data travel in a
    fixed number of reused buffers, so memory does not grow with the number or size of the files.

    Attributes:
        buffers: Those that are free, each of `BUFFER_BYTES`.
    """

    def __init__(self, files: int) -> None:
        self._ended = ExitStack()
        self.hashers = [
            self._ended.enter_context(ThreadPoolExecutor(1, "sha256"))
            for _ in range(min(files, os.cpu_count() or 1))
        ]
        self.buffers: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(_BUFFERS):
            self.buffers.put(memoryview(bytearray(BUFFER_BYTES)))
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            for pool in self.hashers:
                pool.shutdown(wait=False, cancel_futures=True)
        self._ended.close()

    def create(self, path: Path) -> "HashedFile":
        """A new file; the directory must be there, and the file must not."""
        hasher = self.hashers[self._files % len(self.hashers)]
        self._files += 1
        return HashedFile(path, self, hasher)


class HashedFile:
    """Writes a new file front to back.

    Take a buffer from the crew, fill it, `put()` it. `finish()` waits until all is hashed and on
    the disk. Without it the file is incomplete and the caller removes it.
    """

    def __init__(self, path: Path, crew: HashingCrew, hasher: ThreadPoolExecutor) -> None:
        self._path = path
        self._crew = crew
        self._hasher = hasher
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._size_bytes = 0
        self._unwritten_bytes = 0
        self._state = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def put(self, buffer: memoryview, size_bytes: int) -> None:
        """Write the first `size_bytes` of a buffer; it is the crew's again when it is hashed.

        Raises:
            OSError: The disk is full or broken.
        """
        done = 0
        while done < size_bytes:
            done += os.write(self._descriptor, buffer[done:size_bytes])
        # Not before the write: when it has been hashed, others fill the buffer anew.
        self._hasher.submit(self._hash, buffer, size_bytes)
        self._size_bytes += size_bytes
        self._unwritten_bytes += size_bytes
        if self._unwritten_bytes >= EVERY_BYTES:
            self._unwritten_bytes = 0
            begin_write_back(self._descriptor)

    def write(self, data: bytes) -> None:
        """Write bytes that are at hand already."""
        for start in range(0, len(data), BUFFER_BYTES):
            part = data[start : start + BUFFER_BYTES]
            buffer = self._crew.buffers.get()
            buffer[: len(part)] = part
            self.put(buffer, len(part))

    def write_zeros(self, size_bytes: int) -> None:
        """Write so many zeros."""
        for start in range(0, size_bytes, BUFFER_BYTES):
            count = min(BUFFER_BYTES, size_bytes - start)
            buffer = self._crew.buffers.get()
            buffer[:count] = bytes(count)
            self.put(buffer, count)

    def finish(self) -> FileRef:
        """Sync the file to disk; its name (without directory), size and digest."""
        os.fsync(self._descriptor)
        sha256 = self._hasher.submit(self._state.hexdigest).result()
        return FileRef(self._path.name, self._size_bytes, sha256)

    def _hash(self, buffer: memoryview, size_bytes: int) -> None:
        self._state.update(buffer[:size_bytes])
        self._crew.buffers.put(buffer)
