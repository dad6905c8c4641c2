"""What the GPUs do meanwhile; a driver that does not answer is no reason to fail."""

import threading
from types import SimpleNamespace
from typing import Any

from trtforge.benchmark.gpu_watch import GpuWatch


class NVMLError(Exception):
    pass


class Driver:
    """NVML as nvidia-ml-py has it, of one GPU that heats up; `mute` functions fail."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *mute: str) -> None:
        self._mute = mute
        self.read = 0
        self.enough = threading.Event()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "_mute"):
            raise_error: Any = object.__getattribute__(self, "_fail")
            return raise_error
        return object.__getattribute__(self, name)

    def _fail(self, *_: Any) -> Any:
        raise NVMLError("not supported")

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, _: int) -> bytes:  # noqa: N802
        return b"NVIDIA Test"

    def nvmlDeviceGetEnforcedPowerLimit(self, _: int) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetPowerUsage(self, _: int) -> int:  # noqa: N802
        return 300_000

    def nvmlDeviceGetClockInfo(self, _: int, which: int) -> int:  # noqa: N802
        return {1: 1755, 2: 2619}[which]

    def nvmlDeviceGetTemperature(self, _: int, __: int) -> int:  # noqa: N802
        return 40 + self.read

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:  # noqa: N802
        self.read += 1
        if self.read >= 3:
            self.enough.set()
        return SimpleNamespace(used=self.read * 10**9)


def watched(driver: Driver) -> Any:
    with GpuWatch(driver, interval_s=0.001) as watch:
        assert driver.enough.wait(30)
    (use,) = watch.use()
    return use


def test_means_and_peaks_are_told() -> None:
    driver = Driver()
    use = watched(driver)
    assert (use.name, use.power_w, use.power_limit_w) == ("NVIDIA Test", 300.0, 700.0)
    assert (use.sm_clock_mhz, use.sm_clock_mhz_min, use.memory_clock_mhz) == (1755, 1755, 2619)
    assert use.samples == driver.read >= 3
    assert use.peak_memory_bytes == driver.read * 10**9
    assert use.temperature_c_max == 40 + driver.read - 1


def test_what_the_driver_does_not_tell_is_none() -> None:
    use = watched(Driver("nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit"))
    assert (use.power_w, use.power_limit_w) == (None, None)
    assert use.sm_clock_mhz == 1755


def test_without_a_driver_nothing_is_watched() -> None:
    with GpuWatch(Driver("nvmlInit")) as watch:
        pass
    assert watch.use() == ()
