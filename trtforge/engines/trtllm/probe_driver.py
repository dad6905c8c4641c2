"""Driver: what toolchain does this interpreter hold, and on what machine? Standard library only.

It does not import tensorrt_llm, which takes tens of seconds and needs a GPU: the versions are in
`tensorrt_llm/version.py`, in the metadata of the packages and in `torch/version.py`.

Request:  version (the release the spec asks for), image_digest (or null), deep (optional: import
          tensorrt_llm and say how long that took; false when absent)
Result:   toolchain {the fields of `trtforge.engines.base.Toolchain`}, facts {standin, tools, gpus,
          memory_bytes, python, interpreter, torch_version, transformers_version, examples, …}
"""

import importlib
import importlib.util
import os
import platform
import re
import runpy
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError, Report, drive
from trtforge.engines.processor import describe_processor
from trtforge.engines.trtllm.examples import find_examples
from trtforge.engines.trtllm.gpu_query import Gpu, find_gpus
from trtforge.engines.trtllm.installed import installed_release, metadata_version

_STANDIN_MARK = "+standin"
# The first release without trtllm-build (upstream's docs/source/legacy/tensorrt-backend-removal.md;
# whether it went in rc21 or rc22 differs between the texts, and neither is supported).
_WITHOUT_ENGINES = (1, 3, 0, 21)
# The wheel of TensorRT is called after its CUDA; `tensorrt` alone only depends on one of them.
_TENSORRT_WHEELS = ("tensorrt_cu13", "tensorrt_cu12", "tensorrt")
_TOOLS = ("trtllm-build", "trtllm-bench", "mpirun")


def probe(request: dict[str, Any], report: Report) -> dict[str, Any]:
    report("reading versions", 0, None)
    found, standin = installed_release()
    _require_release(found, request["version"])
    tools = {name: _tool(name) for name in _TOOLS}
    if tools["trtllm-build"] is None:
        raise DriverError(
            "no-trtllm-build",
            f"tensorrt_llm {found} is installed, but its trtllm-build is neither beside "
            f"{sys.executable} nor on PATH",
            "Install the wheel into this environment again: pip install --force-reinstall "
            f"--no-deps tensorrt-llm=={request['version']} --extra-index-url "
            "https://pypi.nvidia.com",
        )
    gpu, count = _first_gpu()
    torch_version, cuda_version = _torch_versions()
    facts: dict[str, Any] = {
        "standin": standin,
        "tools": tools,
        "gpus": count,
        "memory_bytes": gpu.memory_bytes,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "torch_version": torch_version,
        "transformers_version": metadata_version("transformers"),
        "modelopt_version": metadata_version("nvidia-modelopt"),
        "examples": str(find_examples() or "") or None,
    }
    if request.get("deep"):
        facts["import_s"] = _import_seconds()
    toolchain = {
        "backend": "trtllm",
        "backend_version": found + (_STANDIN_MARK if standin else ""),
        "tensorrt_version": _tensorrt_version(),
        "cuda_version": cuda_version,
        "driver_version": gpu.driver_version,
        "gpu_name": gpu.name,
        "compute_capability": gpu.compute_capability,
        "cpu": describe_processor(),
        # TensorRT brings its kernels and compiles no host code.
        "compiler": "",
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "image_digest": request.get("image_digest"),
    }
    return {"toolchain": toolchain, "facts": facts}


def _require_release(found: str, wanted: str) -> None:
    if found == wanted:
        return
    if _numbers(found) >= _WITHOUT_ENGINES:
        raise DriverError(
            "no-engine-workflow",
            f"tensorrt_llm {found} is installed: upstream removed trtllm-build and engines after "
            "1.3.0rc20",
            "Install 1.2.1, the last stable release with engines (pip install "
            "tensorrt-llm==1.2.1 --extra-index-url https://pypi.nvidia.com), or use "
            "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
        )
    raise DriverError(
        "wrong-version",
        f"tensorrt_llm {found} is installed, and the spec asks for {wanted}",
        f"Set engine.version to {found}, or point TRTFORGE_TRTLLM_PYTHON at an environment with "
        f"{wanted}",
    )


def _numbers(version: str) -> "tuple[int, ...]":
    """`1.3.0rc21` → (1, 3, 0, 21); a final release comes after its candidates."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(?:rc(\d+))?", version)
    if match is None:
        return (0,)
    major, minor, patch, candidate = match.groups()
    return (int(major), int(minor), int(patch or 0), int(candidate) if candidate else 1 << 30)


def _tool(name: str) -> "str | None":
    """Console scripts lie beside the interpreter of a virtual environment, else on PATH."""
    beside = Path(sys.executable).parent / name
    if os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which(name)


def _first_gpu() -> "tuple[Gpu, int]":
    gpus = find_gpus()
    if not gpus.visible:
        raise DriverError(
            "no-gpu",
            f"TensorRT needs an NVIDIA GPU, and none can be used here: {gpus.absence}",
            "Run this on a GPU worker; in a container start it with --gpus all and the NVIDIA "
            "Container Toolkit. `trtforge doctor` says what is missing",
        )
    return gpus.visible[0], len(gpus.visible)


def _tensorrt_version() -> str:
    for name in _TENSORRT_WHEELS:
        version = metadata_version(name)
        if version is not None:
            return version
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise DriverError(
            "no-tensorrt",
            f"tensorrt cannot be imported ({error})",
            "Install the version that this release of TensorRT-LLM pins: pip install "
            "tensorrt-llm==<release> --extra-index-url https://pypi.nvidia.com brings it along",
        ) from error
    return str(tensorrt.__version__)


def _torch_versions() -> "tuple[str | None, str | None]":
    """PyTorch's version and the CUDA it was built with, which is TensorRT-LLM's."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    constants = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return constants["__version__"], constants["cuda"]


def _import_seconds() -> float:
    started = time.monotonic()
    try:
        importlib.import_module("tensorrt_llm")
    except Exception as error:
        raise DriverError(
            "import-failed",
            f"tensorrt_llm cannot be imported: {type(error).__name__}: {error}",
            "Most often a library is missing: libmpi.so.40 is in libopenmpi-dev, libcuda.so.1 "
            "comes with the NVIDIA driver (in a container: --gpus all)",
        ) from error
    return time.monotonic() - started


if __name__ == "__main__":
    drive(probe)
