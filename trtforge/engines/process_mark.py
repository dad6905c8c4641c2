"""Finding every process a driver started, wherever it hides. Standard library only.

A process group is left by whoever calls `setsid` (MPI launchers do), and a daemon is nobody's child
any more. What every descendant keeps is the environment it was started with: a driver gets a mark
in it, and `/proc` says who has that. Where there is no `/proc`, nobody is found.
"""

import os
import signal
import time
from pathlib import Path

MARK_VARIABLE = "TRTFORGE_DRIVER_MARK"
_PROC = Path("/proc")
_PATIENCE_S = 5.0


def marked_processes(mark: str) -> "list[int]":
    """The processes, except this one, that were started with that mark."""
    entry = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for directory in _PROC.glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes()
        except OSError:  # another user's, or gone meanwhile
            continue
        if entry in environment.split(b"\0") and int(directory.name) != os.getpid():
            found.append(int(directory.name))
    return found


def signal_marked(mark: str, number: signal.Signals) -> int:
    """Send a signal to each of them, and say how many there were."""
    found = marked_processes(mark)
    for pid in found:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue
    return len(found)


def kill_marked(mark: str) -> None:
    """Kill them, and those they started meanwhile, until there are none."""
    deadline = time.monotonic() + _PATIENCE_S
    while signal_marked(mark, signal.SIGKILL) and time.monotonic() < deadline:
        time.sleep(0.01)
