"""What machine measured: a number without it means nothing."""

import os
import platform
import re
from pathlib import Path
from typing import Any

from trtforge.engines.base import Toolchain


def describe_machine(toolchain: Toolchain) -> dict[str, Any]:
    """CPU model, usable cores, GPU, and the versions that measured."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": usable,
        "cpu_features": toolchain.cpu,
        "gpu": toolchain.gpu_name,
        "driver": toolchain.driver_version,
        "cuda": toolchain.cuda_version,
        "os": f"{platform.system()} {platform.release()}",
        "backend": f"{toolchain.backend} {toolchain.backend_version}",
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()
