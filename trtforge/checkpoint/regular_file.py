"""Files of a model directory, opened so that nothing lying in their place can make us wait."""

import os
import stat
from pathlib import Path

from trtforge.errors import InputError


class NotRegularFileError(InputError):
    """A directory, device, socket or pipe stands where a file should be."""


class UnreadableFileError(InputError):
    """The system does not let the file be opened: missing, a broken link, or no permission."""


class FileTooLargeError(InputError):
    """A file meant to be read whole is larger than any honest one."""


def open_regular(path: Path) -> int:
    """A descriptor to read from; symbolic links are followed, as the Hub's cache consists of them.

    Raises:
        NotRegularFileError, UnreadableFileError.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularFileError(
                "this is not a regular file",
                field="file",
                value=str(path),
                remedy="Put the model's file there, or download the model again",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_whole(path: Path, max_bytes: int) -> bytes:
    """All bytes of a small regular file.

    Raises:
        NotRegularFileError, UnreadableFileError, FileTooLargeError.
    """
    with os.fdopen(open_regular(path), "rb") as stream:
        try:
            raw = stream.read(max_bytes + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(raw) > max_bytes:
        raise FileTooLargeError(
            f"the file is larger than {max_bytes} bytes, more than any such file needs",
            field="file",
            value=str(path),
            remedy="Check that it is the file it is named after, or download it again",
        )
    return raw


def _unreadable(path: Path, error: OSError) -> UnreadableFileError:
    return UnreadableFileError(
        f"the file cannot be read ({error.strerror})",
        field="file",
        value=str(path),
        remedy="Check that it exists and may be read, or download the model again",
    )
