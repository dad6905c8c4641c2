"""plan: what a build would do, and what is there already. It changes nothing."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import LocalGpus, find_gpus
from trtforge.engines.memory import MemoryPlan
from trtforge.engines.registry import open_backend
from trtforge.errors import InputError
from trtforge.sources import ResolvedSource
from trtforge.spec import BuildSpec
from trtforge.stages.benchmark import benchmark_inputs, verdicts
from trtforge.stages.compile import compile_inputs, engine_files, probe_toolchain
from trtforge.stages.convert import convert_inputs
from trtforge.stages.memory import free_disk_bytes, plan_memory, runs_on_gpu
from trtforge.stages.publish import alias_name, make_manifest, publish_inputs
from trtforge.stages.pull import pull_inputs, pulled_model, resolve_model
from trtforge.stages.stage import Workshop, stage_key
from trtforge.stages.target import upstream_converter
from trtforge.store import Manifest, StageResult
from trtforge.store.gates import GateRecords
from trtforge.store.sightings import Sighting

Status = Literal["in store", "to do", "follows"]


class NotEnoughWorkDiskError(InputError):
    """The build would not fit on the disk it works on."""


@dataclass(frozen=True)
class Elsewhere:
    """Another machine compiles: a worker of the Prefect work pool `pool`.

    `sighting` is the toolchain that was last seen there; None when nobody has looked yet: then
    what depends on it is decided there.
    """

    pool: str
    sighting: Sighting | None


@dataclass(frozen=True)
class PlannedStage:
    """One stage: `in store`, `to do`, or `follows` when its inputs are not known yet."""

    stage: str
    status: Status
    key: str | None
    detail: str


@dataclass(frozen=True)
class Plan:
    """What a build would do. `toolchain` is None where it is not known before the build."""

    source: str
    revision: str | None
    toolchain: Toolchain | None
    stages: tuple[PlannedStage, ...]
    model_bytes: int
    work_disk_bytes: int
    free_disk_bytes: int
    memory: MemoryPlan | None = None
    """None where the engine is for a CPU, or nobody knows yet what for."""

    @property
    def complete(self) -> bool:
        """Whether all is done already: every stage in the store, every alias on the engine."""
        return all(stage.status == "in store" for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory": self.memory.to_json() if self.memory else None}


def make_plan(shop: Workshop, spec: BuildSpec, elsewhere: Elsewhere | None = None) -> Plan:
    """Check the spec against the world, and look every stage up that can be looked up.

    Args:
        elsewhere: Who compiles; None: this machine, whose toolchain is looked at now.

    Raises:
        InputError: the source, the model or an engine option is wrong, or the disk, the GPU or
            the machine's memory too small.
        ServiceError: the source or the store cannot be reached.
        BuildError: the toolchain is missing.
    """
    # Cheap and local before anything that takes time or a network.
    upstream_converter(shop, spec)
    toolchain = _toolchain(shop, spec, elsewhere)
    resolved = resolve_model(shop, spec)
    memory = _memory(shop, spec, resolved, toolchain, elsewhere)
    stages = look_up(shop, spec, resolved, toolchain)
    model_bytes = resolved.size_bytes
    to_do = [s.stage for s in stages if s.status != "in store" or shop.force]
    # Model, checkpoint and engine lie on the disk together at worst, once in the cache and, where
    # files cannot be linked, once more in scratch space.
    here = {"pull", "convert"} if elsewhere else {"pull", "convert", "compile"}
    needed = (2 if elsewhere else 3) * model_bytes if here & set(to_do) else 0
    free = free_disk_bytes(shop.work_root)
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


def _toolchain(shop: Workshop, spec: BuildSpec, elsewhere: Elsewhere | None) -> Toolchain | None:
    if elsewhere is None:
        return probe_toolchain(shop, spec)
    open_backend(spec.engine.backend, shop.interpreter(spec.engine.backend)).check(spec.engine)
    return elsewhere.sighting.found if elsewhere.sighting else None


def _memory(
    shop: Workshop,
    spec: BuildSpec,
    resolved: ResolvedSource,
    toolchain: Toolchain | None,
    elsewhere: Elsewhere | None,
) -> MemoryPlan | None:
    if not runs_on_gpu(spec.engine, toolchain):
        return None
    sighting = elsewhere.sighting if elsewhere else None
    plan = plan_memory(
        spec,
        resolved,
        token=shop.hub_token,
        # A GPU of this machine says nothing about another one's.
        gpus=LocalGpus() if elsewhere else find_gpus(),
        work_root=shop.work_root,
        gpu_name=toolchain.gpu_name if toolchain else None,
        gpu_bytes=sighting.gpu_memory_bytes if sighting else None,
    )
    if plan is not None:
        plan.require_fits()
    return plan


def look_up(
    shop: Workshop, spec: BuildSpec, resolved: ResolvedSource, toolchain: Toolchain | None
) -> list[PlannedStage]:
    """Every stage of a build, and whether the store has it; read only.

    Args:
        toolchain: What compiles; None: not known, so that compile and what follows cannot be
            looked up.
    """
    stages: list[PlannedStage] = []

    def look(stage: str, inputs: dict[str, Any]) -> StageResult | None:
        key = stage_key(stage, inputs)
        found = shop.store.get_stage(stage, key)
        if found:
            size_bytes = sum(f.size_bytes for f in found.outputs)
            size = f"{size_bytes / 1e6:.1f} MB, " if found.outputs else ""
            detail = f"{size}made {found.created_at:%Y-%m-%d %H:%M} UTC"
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
    if not checkpoint or not toolchain:
        return rest("compile", "benchmark", "publish")
    engine = look("compile", compile_inputs(checkpoint.outputs, spec, toolchain))
    if not engine:
        return rest("benchmark", "publish")
    bench = look(
        "benchmark", benchmark_inputs(spec, model, engine_files(engine.outputs), toolchain)
    )
    if not bench:
        return rest("publish")
    manifest = make_manifest(spec, model, checkpoint, engine, bench, toolchain)
    state = GateRecords(shop.store.bucket).state(manifest)
    if state.blocks:
        wrong = next((v.reason for v in verdicts(bench.facts) if not v.passed), "")
        why = f"gate: {state.describe()}{f'; {wrong}' if wrong else ''}"
        return [*stages, PlannedStage("publish", "to do", None, why)]
    if look("publish", publish_inputs(spec, manifest.engine_id, toolchain)):
        stages[-1] = _with_aliases(shop, spec, manifest, stages[-1])
    return stages


def _with_aliases(
    shop: Workshop, spec: BuildSpec, manifest: Manifest, published: PlannedStage
) -> PlannedStage:
    """The publish stage, which is to do as long as an alias points elsewhere."""
    for alias in spec.publish.aliases:
        record = shop.store.get_alias(alias_name(manifest, alias))
        if record is None or record.engine_id != manifest.engine_id:
            engine = manifest.engine_id[:12]
            return replace(published, status="to do", detail=f"{alias} is to point at {engine}")
    return published
