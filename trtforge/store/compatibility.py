"""Does an engine run on a machine? Field by field, each rule with the source it comes from."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import GpuModel
from trtforge.engines.machine import Machine
from trtforge.store.manifests import Manifest

NOT_RECORDED = "not recorded"
NOT_STATED = "not stated"
NO_GPU = "no GPU"

# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1: what
# was compiled with any toolkit of a CUDA major release runs from this driver on. Newer drivers run
# the code of older toolkits.
DRIVER_FLOORS = {11: "450", 12: "525", 13: "580"}


@dataclass(frozen=True)
class Mismatch:
    """One field in which an engine does not fit: what the engine needs, and what there is."""

    field: str
    engine: str
    machine: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """One condition.

    Attributes:
        field: Of the toolchain, or what else is compared.
        on_gpu: Whether it is for engines for GPUs, for those for CPUs, or for both (None).
        check: The engine's need and what the machine has instead, or None when it fits.
        source: Where the rule comes from.
    """

    field: str
    on_gpu: bool | None
    check: Callable[["_Pair"], tuple[str, str] | None]
    source: str


def compatibility(manifest: Manifest, machine: Machine) -> tuple[Mismatch, ...]:
    """The fields in which an engine does not fit a machine; empty when it runs there.

    What is not known of the machine (None) is not compared, except for what the engine was
    compiled for: its GPU or its CPU. What the manifest does not record counts as different. On a
    machine with several kinds of GPU the kind that fits best counts.
    """
    toolchain = manifest.core.built_with
    if not runs_on_gpu(toolchain):
        return tuple(_broken(_Pair(manifest, toolchain, machine, None), on_gpu=False))
    tries = [
        tuple(_broken(_Pair(manifest, toolchain, machine, gpu), on_gpu=True))
        for gpu in machine.gpus
    ]
    without = Mismatch("gpu_name", toolchain.gpu_name or NOT_RECORDED, NO_GPU)
    return min(tries, key=len, default=(without,))


def runs_on_gpu(toolchain: Toolchain) -> bool:
    """Whether the engine was compiled for a GPU."""
    return bool(toolchain.gpu_name or toolchain.compute_capability)


@dataclass(frozen=True)
class _Pair:
    manifest: Manifest
    toolchain: Toolchain
    machine: Machine
    gpu: GpuModel | None


def _broken(pair: _Pair, *, on_gpu: bool) -> Iterator[Mismatch]:
    for rule in RULES:
        if rule.on_gpu in (None, on_gpu) and (found := rule.check(pair)):
            yield Mismatch(rule.field, *found)


def _equal(needed: str | None, present: str | None) -> tuple[str, str] | None:
    if present is None or (needed and needed.casefold() == present.casefold()):
        return None
    return needed or NOT_RECORDED, present


def _cpu(pair: _Pair) -> tuple[str, str] | None:
    needed, present = pair.toolchain.cpu, pair.machine.cpu
    if not needed or present is None:
        return needed or NOT_RECORDED, present or NOT_STATED
    features, there = needed.split()[1:], present.split()[1:]
    return None if set(features) <= set(there) else (needed, present)


def _driver(pair: _Pair) -> tuple[str, str] | None:
    present = pair.machine.driver_version
    needed = _driver_floor(pair.toolchain)
    if present is None or needed is None or _numbers(present) >= _numbers(needed):
        return None
    return f"{needed} or newer", present


def _driver_floor(toolchain: Toolchain) -> str | None:
    """The oldest driver the engine is known to run with."""
    cuda = _numbers(toolchain.cuda_version or "")
    floors = [DRIVER_FLOORS.get(cuda[0]) if cuda else None, toolchain.driver_version]
    return min((floor for floor in floors if floor), key=_numbers, default=None)


def _count(pair: _Pair) -> tuple[str, str] | None:
    needed = pair.manifest.core.ranks
    if pair.gpu is None or needed <= pair.gpu.count:
        return None
    return str(needed), str(pair.gpu.count)


def _backend_version(pair: _Pair) -> tuple[str, str] | None:
    mine = pair.toolchain
    there = [r.version for r in pair.machine.runtimes if r.backend == mine.backend]
    if not there or mine.backend_version in there:
        return None
    return mine.backend_version or NOT_RECORDED, ", ".join(there)


def _tensorrt_version(pair: _Pair) -> tuple[str, str] | None:
    mine = pair.toolchain
    there = [
        r.tensorrt_version
        for r in pair.machine.runtimes
        if r.backend == mine.backend and r.tensorrt_version
    ]
    if not there or mine.tensorrt_version in there:
        return None
    return mine.tensorrt_version or NOT_RECORDED, ", ".join(there)


def _numbers(version: str) -> tuple[int, ...]:
    """`580.159.03` as numbers, up to the first part that is none."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


_PORTABILITY = (
    "docs.nvidia.com/deeplearning/tensorrt, support matrix, Engine Portability: serialized engines "
    "are not portable across platforms; nor is the shared library in an AOTInductor package"
)
_SAME_DEVICE = (
    "docs.nvidia.com/deeplearning/tensorrt, Hardware Compatibility: engines are compatible only "
    "with the type of device they were built on; NVIDIA/TensorRT-LLM #222, #3031. AOTInductor "
    "chooses kernels and compiles them for the one GPU it sees"
)
RULES: tuple[Rule, ...] = (
    Rule(
        "gpu_name",
        True,
        lambda p: _equal(p.toolchain.gpu_name, p.gpu.name if p.gpu else NO_GPU),
        _SAME_DEVICE,
    ),
    Rule(
        "compute_capability",
        True,
        lambda p: _equal(
            p.toolchain.compute_capability, p.gpu.compute_capability if p.gpu else None
        ),
        _SAME_DEVICE,
    ),
    Rule(
        "gpu_count",
        True,
        _count,
        "one process and GPU per rank, tp x pp of them: TensorRT-LLM's runtime and that of aoti "
        "refuse another world size",
    ),
    Rule(
        "cpu",
        False,
        _cpu,
        "AOTInductor compiles C++ with -march=native: vector units that are missing end in an "
        "illegal instruction; more than were there are no harm",
    ),
    Rule(
        "backend_version",
        None,
        _backend_version,
        "TensorRT-LLM engines name the release that wrote them (NVIDIA/TensorRT-LLM #1838, "
        "tensorrtllm_backend #190, #235, #424); the aoti runtime refuses another PyTorch",
    ),
    Rule(
        "tensorrt_version",
        None,
        _tensorrt_version,
        "docs.nvidia.com/deeplearning/tensorrt, Version Compatibility: by default an engine is "
        "compatible only with the version of TensorRT it was built with",
    ),
    Rule(
        "driver_version",
        True,
        _driver,
        "docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility (`DRIVER_FLOORS`)",
    ),
    Rule("os", None, lambda p: _equal(p.toolchain.os, p.machine.os), _PORTABILITY),
    Rule("arch", None, lambda p: _equal(p.toolchain.arch, p.machine.arch), _PORTABILITY),
)
"""Every condition, those that weigh most first."""
