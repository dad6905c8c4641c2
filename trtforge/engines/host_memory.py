"""How much memory this process can still have: the machine's, or its container's."""

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Free memory and what the kernel would give up for it, within the limit of a cgroup (v2)."""
    available = psutil.virtual_memory().available
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is None or used is None:
        return available
    # Pages of files are counted as used, and given up when memory is asked for.
    cached = _statistic(cgroup / "memory.stat", "inactive_file") or 0
    return max(0, min(available, limit - used + cached))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or `max`
        return None


def _statistic(path: Path, name: str) -> int | None:
    try:
        pairs = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return None
    return int(pairs[name]) if name in pairs else None
