"""Driver: what toolchain does this interpreter hold, and on what machine? Standard library only.

It does not import torch, which takes seconds: PyTorch's version and CUDA version are constants
in `torch/version.py`. The GPU is asked through `nvidia-smi`.
"""

import importlib.util
import platform
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError, Report, drive
from trtforge.engines.processor import describe_processor


def probe(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """request: `{"device": "cpu" | "cuda" | "auto"}` → the fields of `Toolchain`."""
    del report
    torch_version, cuda_version = _torch_versions()
    gpu = _first_gpu() if request["device"] in ("auto", "cuda") and cuda_version else None
    if request["device"] == "cuda" and gpu is None:
        why = "nvidia-smi names none" if cuda_version else f"PyTorch {torch_version} has no CUDA"
        raise DriverError(
            "no-gpu",
            f"no CUDA GPU can be used here: {why}",
            "Set engine.options.device to cpu, or run on a GPU worker with a CUDA build of PyTorch",
        )
    return {
        "backend": "aoti",
        "backend_version": torch_version,
        "tensorrt_version": None,
        "cuda_version": cuda_version if gpu else None,
        "driver_version": gpu["driver_version"] if gpu else None,
        "gpu_name": gpu["name"] if gpu else None,
        "compute_capability": gpu["compute_capability"] if gpu else None,
        "cpu": describe_processor(),
        "compiler": _compiler(),
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "image_digest": request.get("image_digest"),
    }


def _torch_versions() -> "tuple[str, str | None]":
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise DriverError(
            "no-torch",
            "the toolchain's interpreter has no PyTorch",
            "Install trtforge[aoti] there, or point TRTFORGE_TOOLCHAIN_PYTHON at one that has it",
        )
    constants = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return constants["__version__"], constants["cuda"]


def _first_gpu() -> "dict[str, str] | None":
    if shutil.which("nvidia-smi") is None:
        return None
    fields = ("name", "driver_version", "compute_cap")
    answer = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    rows = [row.strip() for row in answer.stdout.splitlines() if row.strip()]
    if answer.returncode != 0 or not rows:
        return None
    name, driver_version, capability = (cell.strip() for cell in rows[0].split(","))
    return {
        "name": name,
        "driver_version": driver_version,
        "compute_capability": capability,
    }


def _compiler() -> str:
    if shutil.which("g++") is None:
        raise DriverError(
            "no-compiler",
            "AOTInductor needs a C++ compiler and there is no g++",
            "Install it (Debian: apt-get install g++)",
        )
    answer = subprocess.run(
        ["g++", "-dumpfullversion"], capture_output=True, text=True, timeout=60, check=True
    )
    return f"g++ {answer.stdout.strip()}"


if __name__ == "__main__":
    drive(probe)
