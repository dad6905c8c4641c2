"""Files and directories that appear under their name only when they are whole.

Each is made beside its final name under a temporary one, which is locked (`flock`) while its
writer lives. What a killed writer left is removed by the next one with the same final name, or
gone on with where that is asked for.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trtforge.errors import BuildError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_log = logging.getLogger(__name__)


class DiskFullError(BuildError):
    """A disk has no room left for what is being written."""


@contextmanager
def partial_file(final: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Write a file that replaces `final` when the block ends without an exception.

    The bytes are on the disk (`fsync`) before the name is.

    Raises:
        DiskFullError: The disk is full; `final` is as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with _naming_full_disk(final), _temporary(final, directory=False) as temporary:
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        temporary.replace(final)
        _sync_directory(final.parent)


@contextmanager
def resumable_file(
    final: Path, mode: int = 0o644, *, wanted: Callable[[], bool] = lambda: True
) -> Iterator[BinaryIO | None]:
    """Like `partial_file`, but goes on with what an earlier writer had when it died or gave up.

    The stream is open for reading and writing, at its start. There is one writer at a time, in all
    processes: others wait, and go on with what the first has left them. What is worthless is to be
    truncated; an empty file is not kept.

    Args:
        wanted: Asked when it is our turn. If it says no, the block gets None.

    Raises:
        DiskFullError: The disk is full; `final` is as it was, and nothing is kept.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    path = final.with_name(f"{_prefix(final)}resume.partial")
    with _naming_full_disk(final), os.fdopen(_claim(path, mode), "r+b") as stream:
        if not wanted():
            path.unlink()
            yield None
            return
        try:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        except BaseException as error:
            with suppress(OSError):
                stream.flush()
            full = isinstance(error, OSError) and error.errno in _FULL
            if full or os.fstat(stream.fileno()).st_size == 0:
                path.unlink(missing_ok=True)
            raise
        path.replace(final)
        _sync_directory(final.parent)


@contextmanager
def partial_directory(final: Path) -> Iterator[Path]:
    """Fill a directory that becomes `final` when the block ends without an exception.

    `final` must be absent or an empty directory (`OSError` otherwise).

    Raises:
        DiskFullError: The disk is full; `final` is as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with _naming_full_disk(final), _temporary(final, directory=True) as temporary:
        yield temporary
        temporary.replace(final)
        _sync_directory(final.parent)


def link_or_copy(source: Path, final: Path) -> None:
    """Give `source` the second name `final`, replacing what is there; copy across devices.

    A hard link shares bytes and permissions with `source`.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    # Not `.partial`: a link is no work lost, and `_sweep` must not take it in mid-rename.
    link = final.with_name(f"{_prefix(final)}{uuid.uuid4().hex}.link")
    try:
        os.link(source, link)
        link.replace(final)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}:
            raise
        mode = source.stat().st_mode & 0o777
        with source.open("rb") as reader, partial_file(final, mode) as writer:
            shutil.copyfileobj(reader, writer, 4 << 20)
    finally:
        # Renaming one of two links to the same file onto the other does nothing (rename(2)).
        link.unlink(missing_ok=True)


@contextmanager
def _temporary(final: Path, *, directory: bool) -> Iterator[Path]:
    """An empty temporary file or directory beside `final`, locked, and gone afterwards."""
    _sweep(final)
    while True:
        path = final.with_name(f"{_prefix(final)}{uuid.uuid4().hex}.partial")
        if directory:
            path.mkdir()
        else:
            path.touch(exist_ok=False)
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
            # A sweep may have come between making and locking.
            if path.exists():
                break
            os.close(handle)
    try:
        yield path
    finally:
        if directory:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        os.close(handle)


def _claim(path: Path, mode: int) -> int:
    """Open a file, making it when needed, and wait until its lock is ours."""
    while True:
        # Its owner may write, whatever the final mode: opening it again must be possible.
        handle = os.open(path, os.O_RDWR | os.O_CREAT, mode | 0o200)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another writer of %s", path.parent)
            fcntl.flock(handle, fcntl.LOCK_EX)
        # While we waited, the file may have got its final name, or have been removed.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)


def _sweep(final: Path) -> None:
    """Remove what dead writers of `final` left behind."""
    for leftover in final.parent.glob(f"{_prefix(final)}*.partial"):
        with suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)
            finally:
                os.close(handle)


def _prefix(final: Path) -> str:
    # Hashed, so that a long name does not become too long.
    return f".{hashlib.sha256(final.name.encode()).hexdigest()[:12]}-"


@contextmanager
def _naming_full_disk(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            "the disk is full",
            field="path",
            value=str(final.parent),
            remedy="Free space there, or choose a cache or output directory on a larger disk",
        ) from error


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
