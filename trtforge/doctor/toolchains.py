"""What each backend compiles with: its interpreter, and what that has installed."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtforge.doctor.findings import Finding
from trtforge.engines.driver_process import DriverFailedError, run_driver
from trtforge.engines.gpu import LocalGpus
from trtforge.engines.trtllm.versions import DEFAULT, SUPPORTED
from trtforge.errors import TrtforgeError
from trtforge.settings import Settings

_PROBE_S = 30.0
_ASK_S = 10.0
# Where images put it: NVIDIA's release image, and docker/Dockerfile.gpu-from-cuda.
_USUAL = (Path("/usr/bin/python3"), Path("/opt/tensorrt-llm/bin/python3"))
_HAS_IT = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorrt_llm') is None)"
_GET_IT = (
    f"Three ways: the image of docker/Dockerfile.gpu (`trtforge image build gpu`), which has it; "
    f"a virtual environment of Python 3.10 or 3.12 with `pip install tensorrt-llm=={DEFAULT} "
    "--extra-index-url https://pypi.nvidia.com` (Ubuntu 24.04: also libopenmpi-dev), and "
    "TRTFORGE_TRTLLM_PYTHON set to its python; or NVIDIA's image "
    f"nvcr.io/nvidia/tensorrt-llm/release:{DEFAULT}"
)


def check_aoti(settings: Settings) -> list[Finding]:
    """PyTorch and a C++ compiler, where `TRTFORGE_TOOLCHAIN_PYTHON` points."""
    python = settings.toolchain_python
    try:
        found = _probe("aoti", {"device": "auto", "image_digest": None}, python)
    except TrtforgeError as error:
        return [Finding("aoti", "toolchain", "missing", error.problem, error.remedy)]
    target = found["gpu_name"] or "the CPU"
    detail = f"PyTorch {found['backend_version']}, {found['compiler']}, for {target} ({python})"
    return [Finding("aoti", "toolchain", "ok", detail)]


def check_trtllm(settings: Settings, gpus: LocalGpus) -> list[Finding]:
    """TensorRT-LLM, where `TRTFORGE_TRTLLM_PYTHON` points, or wherever else it is found."""
    configured = settings.trtllm_python
    python = configured or next(_found_elsewhere(), None)
    if python is None:
        return [
            Finding(
                "trtllm",
                "toolchain",
                "missing",
                "no interpreter with TensorRT-LLM is configured, and none was found in the usual "
                "places",
                _GET_IT,
            )
        ]
    findings = [] if configured else [_point_at(python)]
    try:
        version, found = _probe_trtllm(python)
    except DriverFailedError as error:
        if error.cause == "no-gpu":
            detail = f"TensorRT-LLM is installed ({python}), but no GPU can be used"
            remedy = error.remedy if gpus.models else "Run it on a machine with an NVIDIA GPU"
            return [*findings, Finding("trtllm", "toolchain", "missing", detail, remedy)]
        return [*findings, _broken(error)]
    except TrtforgeError as error:
        return [*findings, _broken(error)]
    toolchain, facts = found["toolchain"], found["facts"]
    detail = (
        f"TensorRT-LLM {toolchain['backend_version']}, TensorRT {toolchain['tensorrt_version']}, "
        f"CUDA {toolchain['cuda_version']}, for {toolchain['gpu_name']} ({python})"
    )
    if facts["standin"]:
        detail += " is the tests' stand-in, which compiles nothing"
        return [*findings, Finding("trtllm", "toolchain", "missing", detail, _GET_IT)]
    if version == DEFAULT:
        findings.append(Finding("trtllm", "toolchain", "ok", detail))
    else:
        remedy = f"Specs must say engine.version: {version}; without it {DEFAULT} is meant"
        findings.append(Finding("trtllm", "toolchain", "warning", detail, remedy))
    if not facts["tools"].get("mpirun"):
        findings.append(
            Finding(
                "trtllm",
                "mpirun",
                "warning",
                "it is not on PATH",
                "Engines of several ranks need it (Debian, Ubuntu: openmpi-bin)",
            )
        )
    return findings


def _probe_trtllm(python: Path) -> tuple[str, dict[str, Any]]:
    """Which supported release it is, and what the probe found.

    Raises:
        DriverFailedError: Of the probe; when it is none of them, for the default one.
    """
    refused = None
    for version in dict.fromkeys((DEFAULT, *SUPPORTED)):
        try:
            return version, _probe("trtllm", {"version": version, "image_digest": None}, python)
        except DriverFailedError as error:
            if error.cause != "wrong-version":
                raise
            refused = refused or error
    assert refused is not None
    raise refused


def _broken(error: TrtforgeError) -> Finding:
    # The probe sends people to the doctor for this one.
    absent = isinstance(error, DriverFailedError) and error.cause == "no-tensorrt-llm"
    remedy = _GET_IT if absent else error.remedy
    return Finding("trtllm", "toolchain", "missing", error.problem, remedy)


def _point_at(python: Path) -> Finding:
    return Finding(
        "trtllm",
        "interpreter",
        "missing",
        f"{python} has TensorRT-LLM, but no setting points at it",
        f"Set TRTFORGE_TRTLLM_PYTHON={python}",
    )


def _probe(backend: str, request: dict[str, Any], python: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="trtforge-doctor-") as work_dir:
        return run_driver(
            f"trtforge.engines.{backend}.probe_driver",
            request,
            work_dir=Path(work_dir),
            timeout_s=_PROBE_S,
            python=python,
        )


def _found_elsewhere() -> Iterator[Path]:
    on_path = shutil.which("python3")
    places = [*_USUAL, Path(sys.executable), *([Path(on_path)] if on_path else [])]
    for python in dict.fromkeys(places):
        if python.exists() and _has_tensorrt_llm(python):
            yield python


def _has_tensorrt_llm(python: Path) -> bool:
    try:
        answer = subprocess.run(
            [str(python), "-I", "-c", _HAS_IT], capture_output=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0
