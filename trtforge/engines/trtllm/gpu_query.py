"""The GPUs of this machine for drivers: through `nvidia-smi`, and NVML by ctypes.

Standard library only, and no CUDA context: asking costs no GPU memory.
"""

import csv
import ctypes
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass

_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "uuid")
_TIMEOUT_S = 60.0
_MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """One GPU, as `nvidia-smi` describes it.

    Attributes:
        memory_bytes: None where the GPU shares the host's memory.
    """

    index: int
    name: str
    driver_version: str
    compute_capability: str
    memory_bytes: "int | None"
    uuid: str


@dataclass(frozen=True)
class Gpus:
    """The GPUs that CUDA would see here, or why there is none."""

    visible: "tuple[Gpu, ...]" = ()
    absence: str = ""


def find_gpus() -> Gpus:
    """The GPUs of this machine or container that `CUDA_VISIBLE_DEVICES` leaves, in its order."""
    if shutil.which("nvidia-smi") is None:
        return Gpus(absence="there is no nvidia-smi: no NVIDIA driver, or not in this container")
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpus(absence=f"nvidia-smi does not answer ({type(error).__name__})")
    if answer.returncode != 0:
        said = (answer.stderr.strip() or answer.stdout.strip() or "no output").splitlines()[0]
        return Gpus(absence=f"nvidia-smi failed: {said}")
    rows = [row for row in csv.reader(answer.stdout.splitlines()) if len(row) == len(_FIELDS)]
    found = [_gpu(index, [cell.strip() for cell in row]) for index, row in enumerate(rows)]
    if not found:
        return Gpus(absence="nvidia-smi lists no GPU")
    visible = _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not visible:
        return Gpus(absence="CUDA_VISIBLE_DEVICES hides every GPU")
    return Gpus(tuple(visible))


def _gpu(index: int, cells: "list[str]") -> Gpu:
    name, driver_version, capability, memory_mib, uuid = cells
    memory = int(memory_mib) * _MIB if memory_mib.isdecimal() else None
    return Gpu(index, name, driver_version, capability, memory, uuid)


def _visible(found: "list[Gpu]", variable: "str | None") -> "list[Gpu]":
    """CUDA takes entries up to the first one it does not know, as indices or as UUIDs."""
    if variable is None:
        return found
    visible = []
    for entry in (part.strip() for part in variable.split(",")):
        if entry.startswith("MIG-"):
            # A slice of a GPU: nvidia-smi lists whole ones only, and which one it is part of does
            # not show here.
            return found[:1]
        same = [
            gpu
            for gpu in found
            if entry == str(gpu.index) or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))
        ]
        if len(same) != 1:
            break
        visible.append(same[0])
    return visible


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class MemoryWatch:
    """Samples the GPU memory in use (by every process) while a `with` block runs.

    Attributes:
        peak_bytes: The most that was in use on any one of the GPUs; None where NVML cannot tell.
    """

    def __init__(self, indices: "list[int]", interval_s: float = 0.5) -> None:
        self.peak_bytes: int | None = None
        self._indices = indices
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="gpu-memory")

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5 * self._interval_s)

    def _watch(self) -> None:
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        if nvml.nvmlInit_v2() != 0:
            return
        try:
            handles = []
            for index in self._indices:
                handle = ctypes.c_void_p()
                if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
                    handles.append(handle)
            while True:
                for handle in handles:
                    memory = _Memory()
                    if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
                        self.peak_bytes = max(self.peak_bytes or 0, int(memory.used))
                if self._stop.wait(self._interval_s):
                    return
        finally:
            nvml.nvmlShutdown()
