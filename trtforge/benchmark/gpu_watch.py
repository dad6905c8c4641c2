"""Power, clocks, temperature and memory of the GPUs while a benchmark runs, by NVML.

Sampled by the orchestrating process, so that the process that is measured does nothing for it.
Where there is no GPU, or NVML does not tell, the numbers are None; nothing here raises.
"""

import logging
import statistics
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

INTERVAL_S = 0.2
_log = logging.getLogger("trtforge")


@dataclass
class _Readings:
    power_w: list[float] = field(default_factory=list)
    sm_clock_mhz: list[float] = field(default_factory=list)
    memory_clock_mhz: list[float] = field(default_factory=list)
    temperature_c: list[float] = field(default_factory=list)
    memory_bytes: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class GpuUse:
    """What one GPU did meanwhile: means, the power limit, and the most memory in use by anybody."""

    name: str
    samples: int
    power_w: float | None
    power_limit_w: float | None
    sm_clock_mhz: float | None
    sm_clock_mhz_min: float | None
    memory_clock_mhz: float | None
    temperature_c_max: float | None
    peak_memory_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class GpuWatch:
    """Samples all GPUs of the machine while a `with` block runs; then `use` tells.

    Args:
        nvml: The module to ask; None is nvidia-ml-py's `pynvml`.
    """

    def __init__(self, nvml: Any = None, interval_s: float = INTERVAL_S) -> None:
        self._nvml = nvml
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._handles: list[tuple[Any, _Readings]] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "GpuWatch":
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [
                (self._nvml.nvmlDeviceGetHandleByIndex(index), _Readings())
                for index in range(count)
            ]
        except self._nvml.NVMLError as error:
            _log.debug("no GPU is watched: %s", error)
            return self
        self._thread = threading.Thread(target=self._sample, daemon=True, name="gpu-watch")
        self._thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(5)

    def use(self) -> tuple[GpuUse, ...]:
        """What each GPU did; empty where none could be watched."""
        return tuple(self._use(handle, read) for handle, read in self._handles)

    def _use(self, handle: Any, read: _Readings) -> GpuUse:
        limit_mw = self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        return GpuUse(
            name=_text(self._ask("nvmlDeviceGetName", handle) or ""),
            samples=len(read.memory_bytes),
            power_w=_mean(read.power_w),
            power_limit_w=None if limit_mw is None else limit_mw / 1000,
            sm_clock_mhz=_mean(read.sm_clock_mhz),
            sm_clock_mhz_min=min(read.sm_clock_mhz, default=None),
            memory_clock_mhz=_mean(read.memory_clock_mhz),
            temperature_c_max=max(read.temperature_c, default=None),
            peak_memory_bytes=int(max(read.memory_bytes)) if read.memory_bytes else None,
        )

    def _sample(self) -> None:
        nvml: Any = self._nvml
        while True:
            for handle, read in self._handles:
                for values, scale, ask, *arguments in (
                    (read.power_w, 1000, "nvmlDeviceGetPowerUsage"),
                    (read.sm_clock_mhz, 1, "nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
                    (read.memory_clock_mhz, 1, "nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
                    (read.temperature_c, 1, "nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
                ):
                    value = self._ask(ask, handle, *arguments)
                    if value is not None:
                        values.append(value / scale)
                memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
                if memory is not None:
                    read.memory_bytes.append(memory.used)
            if self._stop.wait(self._interval_s):
                return

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, what)(*arguments)
        except self._nvml.NVMLError:
            return None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
