"""NVIDIA GPUs and their driver, by NVML."""

from typing import Any

from trtforge.doctor.findings import Finding
from trtforge.engines.gpu import GpuModel, LocalGpus
from trtforge.engines.trtllm.versions import DEFAULT, release

_AREA = "gpu"
# The first driver of each CUDA major version (CUDA toolkit release notes, table of drivers).
_OLDEST_DRIVER = {12: 525, 13: 580}
_OLDEST_CAPABILITY = (8, 0)


def check_gpus(gpus: LocalGpus) -> list[Finding]:
    """What GPUs there are, and whether the driver is new enough for the default TensorRT-LLM."""
    if not gpus.models:
        return [_none(gpus)]
    found = [_gpu(model) for model in gpus.models]
    found.append(_driver(gpus.driver_version))
    free = _free_bytes()
    if free:
        detail = ", ".join(f"{number / 1e9:.1f} GB" for number in free)
        found.append(Finding(_AREA, "free GPU memory", "ok", detail))
    return found


def _none(gpus: LocalGpus) -> Finding:
    no_driver = "Library Not Found" in gpus.absence
    why = "no NVIDIA driver is installed" if no_driver else gpus.absence or "there is none"
    return Finding(
        _AREA,
        "NVIDIA GPU",
        "missing",
        why,
        "TensorRT-LLM needs one, aoti does not. If this machine has one: install NVIDIA's driver "
        "(nvidia-smi must list it); in a container: start it with --gpus all and the NVIDIA "
        "Container Toolkit on the host",
    )


def _gpu(model: GpuModel) -> Finding:
    count = f"{model.count} × " if model.count > 1 else ""
    memory = f", {model.memory_bytes / 1e9:.1f} GB" if model.memory_bytes else ""
    capability = model.compute_capability
    detail = f"{count}{model.name}{memory}, compute capability {capability or 'not known'}"
    if capability and tuple(map(int, capability.split("."))) < _OLDEST_CAPABILITY:
        return Finding(
            _AREA,
            "NVIDIA GPU",
            "warning",
            detail,
            f"TensorRT-LLM {DEFAULT} supports compute capability 8.0 (Ampere) and newer, and "
            "bfloat16 needs it",
        )
    return Finding(_AREA, "NVIDIA GPU", "ok", detail)


def _driver(version: str | None) -> Finding:
    if version is None:
        return Finding(_AREA, "driver", "not checked", "NVML does not say its version")
    cuda = release(DEFAULT).cuda
    oldest = _OLDEST_DRIVER[int(cuda.split(".")[0])]
    supports = _cuda_version()
    detail = f"{version}" + (f", up to CUDA {supports}" if supports else "")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < oldest:
        return Finding(
            _AREA,
            "driver",
            "warning",
            detail,
            f"TensorRT-LLM {DEFAULT} is built with CUDA {cuda}, which needs driver {oldest} or "
            "newer: update it, or use engine.version 1.0.0 or 0.16.0",
        )
    return Finding(_AREA, "driver", "ok", detail)


def _cuda_version() -> str | None:
    """The newest CUDA that the driver runs."""
    import pynvml

    try:
        pynvml.nvmlInit()
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError:
        return None
    return f"{number // 1000}.{number % 1000 // 10}"


def _free_bytes() -> list[int]:
    import pynvml

    def free(index: int) -> int:
        handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)

    try:
        pynvml.nvmlInit()
        return [free(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
