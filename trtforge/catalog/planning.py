"""What has to be built: every cell against its source, its pool's toolchain and the store.

Nothing is written and nothing is started; a source that cannot be read concerns its own cells
only. The store itself must answer.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from trtforge.canonical import digest
from trtforge.catalog.cells import Cell
from trtforge.catalog.model import Catalog
from trtforge.catalog.reasons import reasons
from trtforge.catalog.snapshot import Snapshot
from trtforge.catalog.window import turn_of
from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import LocalGpus
from trtforge.errors import BuildError, InputError, ServiceError, TrtforgeError
from trtforge.sources import (
    BucketAccessError,
    BucketNotFoundError,
    HubForbiddenError,
    HubRepositoryNotFoundError,
    HubRevisionNotFoundError,
    HubTermsNotAcceptedError,
    HubTokenMissingError,
    HubTokenRejectedError,
    ResolvedSource,
    SourceDirectoryError,
    parse_source,
    resolve,
)
from trtforge.spec import EngineSpec
from trtforge.stages.memory import plan_memory, runs_on_gpu
from trtforge.stages.plan import PlannedStage, look_up
from trtforge.stages.pull import pull_inputs
from trtforge.stages.stage import Workshop, stage_key
from trtforge.store import AliasName, AliasRecord, Manifest, Store
from trtforge.store.manifests import ManifestIdError
from trtforge.store.records import RecordInvalidError, UnknownFormatError
from trtforge.store.sightings import Sighting

Status = Literal[
    "up to date",
    "changed",
    "not due",
    "held",
    "gate failed",
    "unknown toolchain",
    "gated",
    "vanished",
    "unreachable",
    "refused",
]
"""`held`: it was built, and somebody has pointed its alias elsewhere since. `not due`: changed, but
its schedule says later. `gate failed`: it was built, measured and found wrong; building it again
would find the same. Those after it could not be planned; `is_planned` tells."""

_NOT_PLANNED = ("unknown toolchain", "gated", "vanished", "unreachable", "refused")

_AT_ONCE = 16
_SHOWN_DIGITS = 12
_SMALLER = 0.9  # what the driver calls 80 GB is between 80 and 86 thousand million bytes
_GATED = (
    HubTermsNotAcceptedError,
    HubTokenMissingError,
    HubTokenRejectedError,
    HubForbiddenError,
    BucketAccessError,
)
_VANISHED = (
    HubRepositoryNotFoundError,
    HubRevisionNotFoundError,
    SourceDirectoryError,
    BucketNotFoundError,
)
_DAMAGED = (RecordInvalidError, UnknownFormatError, ManifestIdError)


@dataclass(frozen=True)
class CellPlan:
    """What one cell needs.

    Attributes:
        why: What differs, or what is wrong; empty when it is up to date.
        key: Digest of all that decides the build; None when that is not known.
        engine: The engine in use; None: none, or its manifest cannot be read.
        built_at: When the alias came to point at it.
        stages: As far as they could be looked up.
        seen_at: When the pool's toolchain was looked at; None: never.
    """

    cell: Cell
    status: Status
    why: tuple[str, ...] = ()
    key: str | None = None
    engine: Manifest | None = None
    built_at: datetime | None = None
    stages: tuple[PlannedStage, ...] = field(default=(), repr=False)
    seen_at: datetime | None = None

    @property
    def is_planned(self) -> bool:
        return self.status not in _NOT_PLANNED


def plan_catalog(
    shop: Workshop,
    catalog: Catalog,
    cells: Sequence[Cell],
    at: datetime,
    *,
    ignore_schedule: bool = False,
) -> list[CellPlan]:
    """Plan `cells`, in their order.

    Args:
        at: Now; decides whose turn it is.
        ignore_schedule: It is everybody's turn.

    Raises:
        ServiceError: The store does not answer.
    """
    store = Snapshot(shop.store)
    planner = _Planner(replace(shop, store=store, force=False), store, catalog, at, ignore_schedule)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        texts = list(dict.fromkeys(cell.spec.model.source for cell in cells))
        sources = dict(zip(texts, pool.map(planner.resolve, texts), strict=True))
        return list(pool.map(lambda cell: planner.plan(cell, sources), cells))


@dataclass(frozen=True)
class _Planner:
    shop: Workshop
    store: Snapshot
    catalog: Catalog
    at: datetime
    ignore_schedule: bool

    def resolve(self, source: str) -> ResolvedSource | TrtforgeError:
        try:
            return resolve(parse_source(source), token=self.shop.hub_token)
        except (InputError, ServiceError) as error:
            return error

    def plan(self, cell: Cell, sources: dict[str, ResolvedSource | TrtforgeError]) -> CellPlan:
        source = sources[cell.spec.model.source]
        if isinstance(source, TrtforgeError):
            return CellPlan(cell, _trouble_of(source), (_one_line(source),))
        try:
            return self._plan(cell, source)
        except (InputError, BuildError, *_DAMAGED) as error:
            return CellPlan(cell, "refused", (_one_line(error),))

    def _plan(self, cell: Cell, resolved: ResolvedSource) -> CellPlan:
        sighting = find_sighting(self.store, cell)
        if sighting is None:
            why = f"no run has looked at the {cell.spec.engine.backend} of {cell.gpu.pool} yet"
            return CellPlan(cell, "unknown toolchain", (why,))
        toolchain = sighting.found
        if wrong := _other_gpu(cell, sighting):
            return CellPlan(cell, "refused", (wrong,), seen_at=sighting.seen_at)
        aliases = self._aliases(cell, toolchain)
        in_use = next((record for record in aliases.values() if record), None)
        engine = self._engine(in_use)
        resolved = self._without_idle_commits(resolved, engine)
        stages = tuple(look_up(self.shop, cell.spec, resolved, toolchain))
        plan = CellPlan(
            cell,
            "up to date",
            key=_key(cell, stages, toolchain),
            engine=engine,
            built_at=in_use.at if in_use else None,
            stages=stages,
            seen_at=sighting.seen_at,
        )
        missing = [stage for stage in stages if stage.status != "in store"]
        if not missing:
            return plan
        if missing[0].stage != "publish":
            return self._changed(plan, resolved, sighting, missing[0].stage)
        if missing[0].key is None:
            return replace(plan, status="gate failed", why=(missing[0].detail,))
        engine_id = self._published(missing[0])
        if engine_id is None:
            return self._changed(plan, resolved, sighting, "publish")
        return self._named(plan, engine_id, aliases)

    def _changed(
        self, plan: CellPlan, resolved: ResolvedSource, sighting: Sighting, first_missing: str
    ) -> CellPlan:
        spec, toolchain = plan.cell.spec, sighting.found
        if plan.engine is None:
            why = ["never built" if plan.built_at is None else "the engine in use is gone"]
        else:
            why = reasons(plan.engine, spec, resolved, toolchain)
        why = why or [f"the result of {first_missing} is not in the store"]
        if runs_on_gpu(spec.engine, toolchain):
            self._require_memory(plan.cell, resolved, sighting)
        return self._due(replace(plan, status="changed", why=tuple(why)))

    def _named(
        self, plan: CellPlan, engine_id: str, aliases: dict[AliasName, AliasRecord | None]
    ) -> CellPlan:
        """All is made and published, and an alias points elsewhere: since when, and by whom?"""
        held, missing = [], []
        for name, record in aliases.items():
            if record is None:
                missing.append(f"alias {name.alias} is not set")
            elif record.engine_id == engine_id:
                continue
            elif any(move.engine_id == engine_id for move in record.history):
                held.append(
                    f"alias {name.alias} was moved from engine {engine_id[:_SHOWN_DIGITS]} to "
                    f"{record.engine_id[:_SHOWN_DIGITS]} by {record.by} on {record.at:%Y-%m-%d}"
                )
            else:
                missing.append(f"alias {name.alias} points at another engine")
        if held:
            # A roll-back is a person's decision, and lasts until something changes.
            return replace(plan, status="held", why=tuple(held))
        return self._due(replace(plan, status="changed", why=tuple(missing)))

    def _due(self, plan: CellPlan) -> CellPlan:
        if self.ignore_schedule:
            return plan
        model = plan.cell.model
        later = turn_of(model, plan.built_at, self.at, self.catalog.timezone)
        return replace(plan, status="not due", why=(*plan.why, later)) if later else plan

    def _aliases(self, cell: Cell, toolchain: Toolchain) -> dict[AliasName, AliasRecord | None]:
        names = [
            AliasName(cell.model.name, toolchain.device_name, toolchain.backend, alias)
            for alias in cell.spec.publish.aliases
        ]
        return {name: self.store.get_alias(name) for name in names}

    def _engine(self, record: AliasRecord | None) -> Manifest | None:
        try:
            return self.store.get_manifest(record.engine_id) if record else None
        except (InputError, *_DAMAGED):  # gone, or not to be read: it has to be built again
            return None

    def _without_idle_commits(
        self, resolved: ResolvedSource, engine: Manifest | None
    ) -> ResolvedSource:
        """The commit in use, when the new one has the very same files: a README was edited."""
        if engine is None or resolved.kind != "hub" or engine.core.model.source == resolved.uri:
            return resolved
        model = engine.core.model
        before = replace(resolved, uri=model.source, revision=model.revision)
        told = all(file.fingerprint for file in resolved.files)
        same = told and self.store.get_stage("pull", stage_key("pull", pull_inputs(before)))
        return before if same else resolved

    def _published(self, stage: PlannedStage) -> str | None:
        result = self.store.get_stage("publish", str(stage.key))
        engine_id = result.facts.get("engine_id") if result else None
        return engine_id if isinstance(engine_id, str) else None

    def _require_memory(self, cell: Cell, resolved: ResolvedSource, sighting: Sighting) -> None:
        said = cell.gpu.memory_gb
        gpu_bytes = sighting.gpu_memory_bytes or (round(said * 1e9) if said else None)
        if gpu_bytes is None:
            return
        plan = plan_memory(
            cell.spec,
            resolved,
            token=self.shop.hub_token,
            gpus=LocalGpus(),
            work_root=self.shop.work_root,
            gpu_bytes=gpu_bytes,
        )
        if plan is not None:
            plan.require_fits()


def find_sighting(store: Store, cell: Cell) -> Sighting | None:
    """What was seen in the cell's pool for engines like its own.

    Looking round, a worker lets aoti choose the device; who asks for that device gets the same.
    """
    engine = cell.spec.engine
    found = store.sightings.get(cell.gpu.pool, engine)
    device = engine.options.get("device", "auto")
    if found is None and engine.backend == "aoti" and device != "auto":
        chosen = store.sightings.get(cell.gpu.pool, EngineSpec(backend="aoti"))
        found = chosen if chosen and chosen.found.device == device else None
    return found


def _key(cell: Cell, stages: Sequence[PlannedStage], toolchain: Toolchain) -> str:
    pulled = next((stage.key for stage in stages if stage.stage == "pull"), None)
    return digest(
        {
            "pull": pulled,
            "spec": cell.spec.model_dump(mode="json", exclude={"engine": {"timing_cache"}}),
            "toolchain": toolchain.to_json(),
            "pool": cell.gpu.pool,
        }
    )


def _other_gpu(cell: Cell, sighting: Sighting) -> str:
    """What is wrong with the GPUs of the pool; empty when nothing is."""
    said, found = cell.gpu, sighting.found
    if said.gpu_name and found.gpu_name != said.gpu_name:
        return (
            f"pool {said.pool} has {found.gpu_name or 'no GPU'}, and the catalogue says that "
            f"{cell.gpu_type} is {said.gpu_name}"
        )
    memory_bytes = sighting.gpu_memory_bytes
    if said.memory_gb and memory_bytes and memory_bytes < _SMALLER * said.memory_gb * 1e9:
        return (
            f"the GPUs of pool {said.pool} have {memory_bytes / 1e9:.0f} GB, and the catalogue "
            f"says {said.memory_gb:g} GB"
        )
    return ""


def _trouble_of(error: TrtforgeError) -> Status:
    if isinstance(error, _GATED):
        return "gated"
    if isinstance(error, _VANISHED):
        return "vanished"
    return "unreachable" if isinstance(error, ServiceError) else "refused"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
