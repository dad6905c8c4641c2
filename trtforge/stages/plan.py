"""plan: what a build would do, and what is there already. It changes nothing."""

import shutil
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import find_gpus
from trtforge.engines.trtllm.memory import MemoryPlan
from trtforge.errors import InputError
from trtforge.sources import ResolvedSource
from trtforge.spec import BuildSpec
from trtforge.stages.benchmark import benchmark_inputs
from trtforge.stages.compile import compile_inputs, engine_files, probe_toolchain
from trtforge.stages.convert import convert_inputs
from trtforge.stages.memory import plan_memory
from trtforge.stages.pull import pull_inputs, pulled_model, resolve_model
from trtforge.stages.stage import Workshop, stage_key
from trtforge.stages.target import upstream_converter
from trtforge.store import StageResult

Status = Literal["in store", "to do", "follows"]


class NotEnoughWorkDiskError(InputError):
    """The build would not fit on the disk it works on."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage: `in store`, `to do`, or `follows` when its inputs are not known yet."""

    stage: str
    status: Status
    key: str | None
    detail: str


@dataclass(frozen=True)
class Plan:
    """What a build would do."""

    source: str
    revision: str | None
    toolchain: Toolchain
    stages: tuple[PlannedStage, ...]
    model_bytes: int
    work_disk_bytes: int
    free_disk_bytes: int
    memory: MemoryPlan | None = None
    """Of a TensorRT-LLM engine; aoti's memory is not estimated."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory": self.memory.to_json() if self.memory else None}


def make_plan(shop: Workshop, spec: BuildSpec) -> Plan:
    """Check the spec against the world, and look every stage up that can be looked up.

    Raises:
        InputError: the source, the model or an engine option is wrong, or the disk, the GPU or
            the machine's memory too small.
        ServiceError: the source or the store cannot be reached.
        BuildError: the toolchain is missing.
    """
    # Cheap and local before anything that takes time or a network.
    upstream_converter(shop, spec)
    toolchain = probe_toolchain(shop, spec)
    resolved = resolve_model(shop, spec)
    memory = _memory(shop, spec, resolved, toolchain)
    stages = _look_up(shop, spec, resolved, toolchain)
    model_bytes = resolved.size_bytes
    to_do = [s.stage for s in stages if s.status != "in store" or shop.force]
    # Model, checkpoint and engine lie on the disk together at worst, once in the cache and, where
    # files cannot be linked, once more in scratch space.
    needed = 3 * model_bytes if {"pull", "convert", "compile"} & set(to_do) else 0
    free = shutil.disk_usage(shop.work_root).free
    if needed > free:
        raise NotEnoughWorkDiskError(
            f"the build needs about {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free",
            field="TRTFORGE_HOME",
            value=str(shop.work_root),
            remedy="Free some space, or set TRTFORGE_HOME to a larger disk",
        )
    return Plan(
        source=resolved.uri,
        revision=resolved.revision,
        toolchain=toolchain,
        stages=tuple(stages),
        model_bytes=model_bytes,
        work_disk_bytes=needed,
        free_disk_bytes=free,
        memory=memory,
    )


def _memory(
    shop: Workshop, spec: BuildSpec, resolved: ResolvedSource, toolchain: Toolchain
) -> MemoryPlan | None:
    if spec.engine.backend != "trtllm":
        return None
    plan = plan_memory(
        spec,
        resolved,
        token=shop.hub_token,
        gpus=find_gpus(),
        work_root=shop.work_root,
        gpu_name=toolchain.gpu_name,
    )
    if plan is not None:
        plan.require_fits()
    return plan


def _look_up(
    shop: Workshop, spec: BuildSpec, resolved: ResolvedSource, toolchain: Toolchain
) -> list[PlannedStage]:
    stages: list[PlannedStage] = []

    def look(stage: str, inputs: dict[str, Any]) -> StageResult | None:
        key = stage_key(stage, inputs)
        found = shop.store.get_stage(stage, key)
        if found:
            size_bytes = sum(f.size_bytes for f in found.outputs)
            detail = f"{size_bytes / 1e6:.1f} MB, made {found.created_at:%Y-%m-%d %H:%M} UTC"
            stages.append(PlannedStage(stage, "in store", key, detail))
        else:
            stages.append(PlannedStage(stage, "to do", key, ""))
        return found

    def rest(*names: str) -> list[PlannedStage]:
        return [*stages, *(PlannedStage(n, "follows", None, "") for n in names)]

    pulled = look("pull", pull_inputs(resolved))
    if not pulled:
        return rest("convert", "compile", "benchmark", "publish")
    model = pulled_model(spec, resolved, pulled)
    checkpoint = look("convert", convert_inputs(model, spec))
    if not checkpoint:
        return rest("compile", "benchmark", "publish")
    engine = look("compile", compile_inputs(checkpoint.outputs, spec, toolchain))
    if not engine:
        return rest("benchmark", "publish")
    look("benchmark", benchmark_inputs(spec, model, engine_files(engine.outputs), toolchain))
    return rest("publish")
