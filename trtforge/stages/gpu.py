"""The GPU half of a build: what it is asked, and what it answers through the store.

The CPU half plans, pulls and converts, and then asks for a GPU. The request names stage results
that lie in the store; the answer is a `GpuReport` below `runs/<id of the GPU run>/`. Neither
carries files, and nothing of it is a result of Prefect's.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from trtforge.canonical import digest
from trtforge.engines.base import Toolchain
from trtforge.errors import BuildError, GateError, InputError, ServiceError, TrtforgeError
from trtforge.spec import BuildSpec
from trtforge.stages.publish import benchmark_summary
from trtforge.stages.pull import PulledModel, default_name
from trtforge.stages.stage import StageOutcome, Workshop
from trtforge.store import Manifest, StageResult
from trtforge.store.aliases import who
from trtforge.store.records import Part, Record, Sha256, parse_record

REPORT_FILE = "gpu-stage.json"
_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StageGoneError(ServiceError):
    """What an earlier stage made is no longer in the store."""


class GpuReportMissingError(BuildError):
    """The GPU run ended well and left no report."""


class GpuRunInputError(InputError):
    """The GPU worker found something wrong with the spec, the model or its own set-up."""


class GpuRunServiceError(ServiceError):
    """A service failed the GPU worker, more often than it tries."""


class GpuRunBuildError(BuildError):
    """The GPU worker could not compile, run or publish the engine."""


class GpuRunGateError(GateError):
    """The engine did not pass a gate on the GPU worker."""


class GpuRequest(BaseModel):
    """What the GPU half is to do: compile, measure, judge, publish, and try what is published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: BuildSpec = Field(description="The whole spec of the build")
    source: str = Field(description="Where the weights came from, with the commit")
    revision: str | None = Field(default=None, description="The commit")
    licence: str | None = Field(default=None, description="Licence of the model")
    pull_key: _Key = Field(description="Key of the pull stage's result in the store")
    convert_key: _Key = Field(description="Key of the convert stage's result in the store")
    force: bool = Field(default=False, description="Make every stage again")
    traceparent: str = Field(default="", description="Trace of the run that asks")
    override: str = Field(
        default="",
        exclude_if=lambda reason: not reason,
        description="Why the engine may have its aliases even if it fails a gate",
    )
    override_by: str = Field(default="", exclude_if=lambda by: not by, description="Who says so")

    def key(self) -> str:
        """Digest of what is asked, whoever asks."""
        return digest(self.model_dump(mode="json", exclude={"traceparent"}))


class ReportedStage(Part):
    """One stage of the GPU half, and how it ended."""

    stage: str
    key: Sha256
    hit: bool
    seconds: float = Field(ge=0)
    detail: str
    log: str = Field(default="", exclude_if=lambda address: not address)


class GpuFailure(Part):
    """The error that ended the GPU half, as `trtforge.errors` has it."""

    family: str
    kind: str
    problem: str
    remedy: str
    field: str = ""
    value: str = ""


class GpuReport(Record):
    """How a GPU run ended.

    Attributes:
        toolchain: What compiled.
        stages: compile, benchmark, gate (where two engines were compared) and publish, as far as
            it came.
        engine_id: Of the published engine; None when it did not come so far.
        answer: Of the published copy.
        failure: Why it ended, if not well.
    """

    toolchain: dict[str, JsonValue]
    stages: tuple[ReportedStage, ...] = ()
    engine_id: Sha256 | None = None
    answer: dict[str, JsonValue] = Field(default_factory=dict)
    failure: GpuFailure | None = None

    @property
    def found(self) -> Toolchain:
        return Toolchain.from_json(self.toolchain)


def make_request(
    spec: BuildSpec,
    model: PulledModel,
    pulled: StageResult,
    converted: StageResult,
    *,
    force: bool,
    traceparent: str = "",
    override: str = "",
) -> GpuRequest:
    """What the CPU half asks for once pull and convert are done."""
    return GpuRequest(
        spec=spec,
        source=model.source,
        revision=model.revision,
        licence=model.licence,
        pull_key=pulled.key,
        convert_key=converted.key,
        force=force,
        traceparent=traceparent,
        override=override,
        override_by=who() if override else "",
    )


def requested(shop: Workshop, request: GpuRequest) -> tuple[PulledModel, StageResult]:
    """The model and the convert stage's result that a request names.

    Raises:
        StageGoneError: One of them was deleted meanwhile.
    """
    spec = request.spec
    model = PulledModel(
        name=spec.model.name or default_name(request.source),
        source=request.source,
        revision=request.revision,
        licence=request.licence,
        files=stage_result(shop, "pull", request.pull_key).outputs,
    )
    return model, stage_result(shop, "convert", request.convert_key)


def stage_result(shop: Workshop, stage: str, key: str) -> StageResult:
    """A stage result that must be there.

    Raises:
        StageGoneError: It is not, or its files are gone.
    """
    found = shop.store.get_stage(stage, key)
    if found is None:
        raise StageGoneError(
            f"the result of {stage} is no longer in the store",
            field=f"{stage}_key",
            value=key,
            remedy="Run the build again: it makes again what is missing",
        )
    return found


def reported_stage(outcome: StageOutcome) -> ReportedStage:
    """A stage's outcome for the report."""
    return ReportedStage(
        stage=outcome.result.stage,
        key=outcome.result.key,
        hit=outcome.hit,
        seconds=outcome.seconds,
        detail=outcome.detail,
        log=_log(outcome.result),
    )


def _log(result: StageResult) -> str:
    """The address of the toolchain's log, from the run that made the result."""
    logs = result.facts.get("logs")
    return str(logs[0]) if isinstance(logs, list) and logs else ""


def failure_of(error: TrtforgeError) -> GpuFailure:
    """An error for the report."""
    family = next(name for kind, (name, _) in _FAMILIES.items() if isinstance(error, kind))
    return GpuFailure(
        family=family,
        kind=type(error).__name__,
        problem=error.problem,
        remedy=error.remedy,
        field=error.field,
        value="" if error.value is None else str(error.value),
    )


def put_report(shop: Workshop, report: GpuReport) -> None:
    """Leave the report of this run in the store."""
    assert shop.run_id is not None, "only a flow run has a report"
    shop.store.put_run_file(shop.run_id, REPORT_FILE, report.to_bytes())


def read_report(shop: Workshop, run_id: str) -> GpuReport | None:
    """The report of a GPU run; None when it left none (it was killed, or never began)."""
    data = shop.store.get_run_file(run_id, REPORT_FILE)
    return parse_record(GpuReport, data, f"{REPORT_FILE} of run {run_id}") if data else None


def published_manifest(shop: Workshop, report: GpuReport) -> Manifest:
    """The manifest of the engine that was published, with what was measured this time.

    (An engine that was published before keeps its first manifest.)

    Raises:
        StageGoneError: The measurements were deleted meanwhile.
    """
    assert report.engine_id is not None, "a report without failure names its engine"
    manifest = shop.store.get_manifest(report.engine_id)
    key = next(stage.key for stage in report.stages if stage.stage == "benchmark")
    measured = benchmark_summary(stage_result(shop, "benchmark", key))
    return manifest.model_copy(update={"benchmark": measured})


def raise_failure(failure: GpuFailure) -> None:
    """Raise the GPU half's error here, as one of its family."""
    kinds: dict[str, type[TrtforgeError]] = dict(_FAMILIES.values())
    raise kinds.get(failure.family, GpuRunBuildError)(
        failure.problem,
        remedy=failure.remedy,
        field=failure.field,
        value=failure.value or None,
    )


_FAMILIES: dict[type[TrtforgeError], tuple[str, Any]] = {
    InputError: ("input", GpuRunInputError),
    ServiceError: ("service", GpuRunServiceError),
    GateError: ("gate", GpuRunGateError),
    BuildError: ("build", GpuRunBuildError),
    TrtforgeError: ("build", GpuRunBuildError),
}
