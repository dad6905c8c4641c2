"""A machine that an engine may run on: this one, or one that somebody describes."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import GpuModel, LocalGpus, find_gpus
from trtforge.engines.processor import describe_processor


@dataclass(frozen=True)
class Runtime:
    """What a machine loads engines of one backend with.

    Attributes:
        version: Of the backend: TensorRT-LLM's, or PyTorch's with its local part.
        tensorrt_version: None where the backend has none, or it is not known.
    """

    backend: str
    version: str
    tensorrt_version: str | None = None


@dataclass(frozen=True)
class Machine:
    """What is known of a machine.

    Attributes:
        gpus: By kind. Empty: it has none.
        driver_version: Of the NVIDIA driver. As all that may be None: None is "not known".
        os: `linux`.
        arch: `x86_64`.
        cpu: Architecture and vector units, as `trtforge.engines.processor` writes them.
        runtimes: What is installed. Of a backend without an entry nothing is known; its runtime
            usually comes in an image of its own.
        gpu_absence: Why there is no GPU, for a person.
    """

    gpus: tuple[GpuModel, ...] = ()
    driver_version: str | None = None
    os: str | None = None
    arch: str | None = None
    cpu: str | None = None
    runtimes: tuple[Runtime, ...] = ()
    gpu_absence: str = ""

    def describe(self) -> str:
        """One line for a person."""
        gpus = [gpu.name if gpu.count == 1 else f"{gpu.count} x {gpu.name}" for gpu in self.gpus]
        parts = [" and ".join(gpus) or "no GPU"]
        parts += [f"driver {self.driver_version}"] if self.driver_version else []
        parts += [f"CPU {self.cpu}"] if self.cpu else []
        parts += [f"{runtime.backend} {runtime.version}" for runtime in self.runtimes]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def local_machine(toolchains: Sequence[Toolchain] = (), gpus: LocalGpus | None = None) -> Machine:
    """This machine.

    Args:
        toolchains: What was probed here; their backends are the runtimes.
        gpus: Its GPUs; None asks NVML.
    """
    found = find_gpus() if gpus is None else gpus
    return Machine(
        gpus=found.models,
        driver_version=found.driver_version,
        os=platform.system().lower(),
        arch=platform.machine(),
        cpu=describe_processor(),
        runtimes=tuple(
            Runtime(t.backend, t.backend_version, t.tensorrt_version) for t in toolchains
        ),
        gpu_absence=found.absence,
    )
