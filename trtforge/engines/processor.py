"""The CPU, as far as it decides what compiled code runs on it. Standard library only."""

import platform
import re
from pathlib import Path

# CPU features that change the code a compiler with -march=native emits for a model's graphs.
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def describe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Architecture and vector units of this machine's CPU: `x86_64 avx2 avx512f`."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    present = set(match.group(1).split()) if match else set()
    found = [feature for feature in _FEATURES if feature in present]
    return " ".join([platform.machine(), *found])
