"""A directory that appears complete or not at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtforge.errors import InputError


class OutputNotEmptyError(InputError):
    """The place for the output is taken."""


class OutputBusyError(InputError):
    """Another process is writing the same output."""


@contextmanager
def staged_directory(out_dir: Path) -> Iterator[Path]:
    """A temporary sibling of `out_dir`, renamed to it when the block ends without an error.

    The name is the same each time, so what a killed process left is found and removed by the next
    start; a lock, which the kernel releases with the process, tells it from a directory in use.
    On any error the temporary directory is removed. Files written inside are synced by the writer;
    the directories are synced here, before and after the rename.

    Raises:
        OutputNotEmptyError: `out_dir` exists and is not an empty directory.
        OutputBusyError: Another process is writing to the same `out_dir`.
    """
    target = Path(os.path.realpath(out_dir))
    _refuse_taken(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.partial"
    lock = _claim(temporary)
    try:
        yield temporary
        _sync_directory(temporary)
        try:
            temporary.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(target) from error
            raise
        _sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _claim(temporary: Path) -> int:
    """Lock the temporary directory, empty; returns the descriptor that holds the lock."""
    while True:
        temporary.mkdir(exist_ok=True)
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # its owner finished or gave up in this moment
        try:
            _lock(descriptor, temporary)
            if not _is_still(descriptor, temporary):
                os.close(descriptor)
                continue
            for entry in temporary.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _lock(descriptor: int, temporary: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputBusyError(
            "another process is writing to the same output directory",
            field="file",
            value=str(temporary),
            remedy="Wait until it has finished, or choose another directory",
        ) from error
    except OSError as error:
        # Some network file systems cannot lock a directory: go on without the protection.
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether `path` is the open directory: its owner may have renamed it before we locked it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _refuse_taken(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise _taken(target)


def _taken(target: Path) -> OutputNotEmptyError:
    return OutputNotEmptyError(
        "the output directory exists already and is not empty",
        field="out_dir",
        value=str(target),
        remedy="Choose a new directory, or remove this one",
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
