"""The GPUs of a machine, as NVML tells them.

`FakeNvml` stands for nvidia-ml-py's module `pynvml` where a test needs GPUs: a machine with the
GPUs of a test does not exist. It has the functions that are used, and answers as the real one does.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pynvml
import pytest

from trtforge.engines.gpu import GpuModel, find_gpus
from trtforge.engines.machine import local_machine

GIB = 1 << 30
H100 = ("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB)
L4 = ("NVIDIA L4", (8, 9), 24 * GIB)


class FakeNvml:
    """See the module. A GPU given as an exception is one that fails when it is asked."""

    NVMLError = pynvml.NVMLError

    def __init__(
        self,
        gpus: Sequence[tuple[str | bytes, tuple[int, int], int | None] | pynvml.NVMLError] = (),
        driver: str | bytes = "580.65.06",
        init: pynvml.NVMLError | None = None,
    ) -> None:
        self._gpus, self._driver, self._init = gpus, driver, init
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self._init:
            raise self._init
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:  # noqa: N802
        return self._driver

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        gpu = self._gpus[index]
        if isinstance(gpu, pynvml.NVMLError):
            raise gpu
        return gpu

    def nvmlDeviceGetName(self, handle: tuple[str, object, int]) -> str:  # noqa: N802
        return handle[0]

    def nvmlDeviceGetUUID(self, handle: object) -> str:  # noqa: N802
        return f"GPU-{[gpu is handle for gpu in self._gpus].index(True)}"

    def nvmlDeviceGetCudaComputeCapability(  # noqa: N802
        self, handle: tuple[str, tuple[int, int], int]
    ) -> tuple[int, int]:
        return handle[1]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[str, object, int | None]) -> object:  # noqa: N802
        if handle[2] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=handle[2])


@dataclass(frozen=True)
class _Case:
    nvml: FakeNvml
    said: str


def test_equal_gpus_are_counted_and_others_are_told_apart() -> None:
    nvml = FakeNvml([H100, L4, H100])
    found = find_gpus(nvml)
    assert found.models == (
        GpuModel("NVIDIA H100 80GB HBM3", "9.0", 80 * GIB, 2),
        GpuModel("NVIDIA L4", "8.9", 24 * GIB, 1),
    )
    assert found.driver_version == "580.65.06"
    assert found.absence == ""
    assert nvml.open == 0


def test_the_bytes_of_old_nvidia_ml_py_are_read() -> None:
    found = find_gpus(FakeNvml([(b"Tesla T4", (7, 5), 16 * GIB)], driver=b"450.80.02"))
    assert found.models == (GpuModel("Tesla T4", "7.5", 16 * GIB, 1),)
    assert found.driver_version == "450.80.02"


def test_a_gpu_that_shares_the_hosts_memory_has_no_memory_of_its_own() -> None:
    found = find_gpus(FakeNvml([("NVIDIA GB10", (12, 1), None)]))
    assert found.models == (GpuModel("NVIDIA GB10", "12.1", None, 1),)


def test_a_gpu_that_is_lost_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    nvml = FakeNvml([lost, H100])
    assert [gpu.count for gpu in find_gpus(nvml).models] == [1]
    assert "leaving out GPU 0" in caplog.text
    assert nvml.open == 0


@pytest.mark.parametrize(
    "case",
    [
        _Case(
            FakeNvml(init=pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)),
            "Driver Not Loaded",
        ),
        _Case(
            FakeNvml(init=pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)),
            "Library Not Found",
        ),
        _Case(FakeNvml([]), "lists no usable GPU"),
        _Case(
            FakeNvml([pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)]),
            "lists no usable GPU",
        ),
    ],
    ids=lambda case: case.said,
)
def test_no_gpu_is_an_answer_that_says_why(case: _Case) -> None:
    found = find_gpus(case.nvml)
    assert found.models == ()
    assert case.said in found.absence
    assert case.nvml.open == 0


def test_this_very_machine_is_described() -> None:
    """With the real NVML: whether there is a GPU or not, there is an answer, and it agrees."""
    found = find_gpus()
    assert bool(found.models) != bool(found.absence)
    assert bool(found.models) <= bool(found.driver_version)
    here = local_machine()
    assert here.gpus == found.models
    assert here.os == sys.platform.rstrip("0123456789")
    assert here.arch
    assert here.cpu
    assert here.cpu.split()[0] == here.arch
    assert (found.models[0].name if found.models else "no GPU") in here.describe()
