"""The GPUs of this machine, by NVML: what the driver says, without CUDA and without a process.

A machine without a GPU, a driver or the library is an answer here, never an error.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuModel:
    """GPUs of one kind.

    Attributes:
        name: As NVML and CUDA name it: `NVIDIA H100 80GB HBM3`.
        compute_capability: `9.0`; None when not known.
        memory_bytes: Of one of them; None when not known.
        count: How many.
    """

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = None
    count: int = 1


@dataclass(frozen=True)
class LocalGpus:
    """What NVML found.

    Attributes:
        models: The kinds of GPU, the first GPU's first; empty when there is none.
        driver_version: Of the NVIDIA driver; None without one.
        uuids: Of each usable GPU, `GPU-…`: what CUDA_VISIBLE_DEVICES takes, and the same in every
            container of the host.
        absence: Why `models` is empty, for a person; empty otherwise.
    """

    models: tuple[GpuModel, ...] = ()
    driver_version: str | None = None
    absence: str = ""
    uuids: tuple[str, ...] = ()


def find_gpus(nvml: Any = None) -> LocalGpus:
    """Ask the driver for the GPUs that this process, or its container, is given.

    `CUDA_VISIBLE_DEVICES` hides GPUs from CUDA, not from here. A GPU that has fallen off the bus is
    left out, with a warning.

    Args:
        nvml: The module to ask; None is nvidia-ml-py's `pynvml`.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return LocalGpus(absence=f"NVML cannot be used: {_text(error)}")
    try:
        driver_version = _text(nvml.nvmlSystemGetDriverVersion())
        found = [_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return LocalGpus(absence=f"NVML failed: {_text(error)}")
    finally:
        nvml.nvmlShutdown()
    usable = [gpu for gpu in found if gpu]
    counts = Counter(gpu for gpu, _ in usable)
    models = tuple(
        GpuModel(gpu.name, gpu.compute_capability, gpu.memory_bytes, count)
        for gpu, count in counts.items()
    )
    absence = "" if models else "the driver lists no usable GPU"
    return LocalGpus(models, driver_version, absence, tuple(uuid for _, uuid in usable))


def _describe(nvml: Any, index: int) -> tuple[GpuModel, str] | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        gpu = GpuModel(
            name=_text(nvml.nvmlDeviceGetName(handle)),
            compute_capability=f"{major}.{minor}",
            memory_bytes=_memory_bytes(nvml, handle),
        )
        return gpu, _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError as error:
        _log.warning("leaving out GPU %d: %s", index, _text(error))
        return None


def _memory_bytes(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # a GPU that shares the host's memory has no answer
        return None


def _text(value: object) -> str:
    # pynvml before 11.5 answered in bytes.
    return value.decode() if isinstance(value, bytes) else str(value)
