"""Having the disk begin with what was written, so that the final sync finds little left to do."""

import ctypes
from collections.abc import Callable

EVERY_BYTES = 32 << 20
"""How often it pays to ask."""

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: start writing, wait for nothing
_WHOLE_FILE = 0


def begin_write_back(descriptor: int) -> None:
    """Have the system write the dirty pages of a file, and return at once.

    Nothing is durable before `os.fsync`, which also reports what went wrong. Unlike `fdatasync`
    every so often, this waits for no disk and commits no journal, which costs more than the
    writing itself. A hint: where there is no sync_file_range(2), nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, 0, _WHOLE_FILE, _SYNC_FILE_RANGE_WRITE)


def _find() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found


_sync_file_range = _find()
