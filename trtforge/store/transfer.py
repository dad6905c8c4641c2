"""What uploads and downloads share: their errors, and the counting of bytes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trtforge.errors import BuildError, ServiceError
from trtforge.progress import OnProgress, Progress

PART_BYTES = 32 << 20
"""Size of the parts of a multipart upload; smaller files go in one request."""

CONNECTIONS = 4
"""Parallel connections of one transfer; what a killed process may have to send again is less
than one part for each of them."""


class FileChangedError(BuildError):
    """A file on this machine is not the one that its description says."""


class BlobMissingError(ServiceError):
    """The store has no blob of this name."""


class BlobCorruptError(ServiceError):
    """The bytes of a blob do not hash to its name."""


class ByteMeter:
    """Adds up the bytes of one step, from any thread, and tells `on_progress` each time."""

    def __init__(self, what: str, total: int, on_progress: OnProgress) -> None:
        self._what = what
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        # Inside the lock, so that listeners never see the count go back by overtaking.
        with self._lock:
            self._done += count
            self._on_progress(Progress(self._what, self._done, self._total, "bytes"))

    @contextmanager
    def attempt(self) -> Iterator[Callable[[int], None]]:
        """Gives a way to add bytes that are taken off again when the block fails."""
        lock = threading.Lock()
        done = 0

        def add(count: int) -> None:
            nonlocal done
            with lock:
                done += count
            self.add(count)

        try:
            yield add
        except BaseException:
            if done:
                self.add(-done)
            raise


def file_changed(path: Path) -> FileChangedError:
    """The error for a file that is missing, or has another size or digest than described."""
    return FileChangedError(
        "this file is missing, or was changed after it was described",
        field="path",
        value=str(path),
        remedy="Nothing was published; let no other process write there, and run again",
    )
