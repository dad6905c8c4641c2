"""How much of the host's memory a process tree takes at most. Standard library only.

It is the sum of the resident sets of all descendants; pages that several of them share are counted
in each. (Of a GPU's memory `trtforge.engines.trtllm.gpu_query` keeps watch.)
"""

import os
import threading
from pathlib import Path
from types import TracebackType

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryMeter:
    """Samples while the block runs: `with MemoryMeter(pid) as meter`.

    Attributes:
        peak_rss_bytes: Of the process and its descendants.
    """

    def __init__(self, pid: int, interval_s: float = 0.25) -> None:
        self.peak_rss_bytes = 0
        self._pid = pid
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="memory-meter")

    def __enter__(self) -> "MemoryMeter":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        trace: "TracebackType | None",
    ) -> None:
        self._done.set()
        self._thread.join(5.0)

    def _watch(self) -> None:
        while True:
            self.peak_rss_bytes = max(self.peak_rss_bytes, tree_rss_bytes(self._pid))
            if self._done.wait(self._interval_s):
                return


def tree_rss_bytes(root: int, proc: Path = Path("/proc")) -> int:
    """The resident sets of a process and its descendants; 0 where there is no `/proc`."""
    children: dict[int, list[int]] = {}
    rss: dict[int, int] = {}
    for directory in proc.glob("[0-9]*"):
        try:
            # The name, in brackets, may contain anything.
            after_name = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(directory.name)
        children.setdefault(int(after_name[1]), []).append(pid)
        rss[pid] = int(after_name[21]) * _PAGE_BYTES
    total, left = 0, [root]
    while left:
        pid = left.pop()
        total += rss.get(pid, 0)
        left += children.get(pid, [])
    return total
