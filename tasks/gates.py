"""Task: what the gates say of an engine."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.events import emit_gate_failed, emit_regression
from tasks.reporting import reported
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.engines.base import Toolchain
from trtforge.gates.enforce import Decision, failed_verdicts
from trtforge.stages.gate import Gated, Override, admit, judge
from trtforge.stages.gpu import GpuRequest
from trtforge.stages.pull import PulledModel
from trtforge.store import Manifest, StageResult


@task(
    name="gate",
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=if_service_failed,
    timeout_seconds=4 * 3600,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def judge_engine(
    request: GpuRequest,
    model: PulledModel,
    converted: StageResult,
    compiled: StageResult,
    measured: StageResult,
    toolchain: Toolchain,
) -> Gated:
    """Correctness against the original model, speed against the engine in use.

    Raises:
        GateError: A gate was not passed; the engine is published, marked as failed.
    """
    shop = task_workshop(force=request.force)
    with reported("gate"):
        gated = judge(shop, request.spec, model, converted, compiled, measured, toolchain)
        override = request.override and Override(request.override_by, request.override)
        try:
            admit(shop, gated, override or None)
        finally:
            if not gated.decision.passed:
                _tell(gated)
    return gated


def _tell(gated: Gated) -> None:
    core = gated.manifest.core
    engine = {
        "engine_id": gated.manifest.engine_id,
        "backend": core.built_with.backend,
        "gpu": core.built_with.device_name,
    }
    emit_gate_failed(core.model.name, engine, failed_verdicts(gated.decision.to_json()))
    _tell_regression(gated.manifest, gated.decision)


def _tell_regression(manifest: Manifest, decision: Decision) -> None:
    performance = decision.performance
    worst = next((c for c in performance.comparisons if not c.passed), None)
    if worst is None or performance.against is None:
        return
    emit_regression(
        manifest.core.model.name,
        engine_id=manifest.engine_id,
        than_engine_id=performance.against,
        alias=performance.alias or "",
        metric=f"{worst.metric} at concurrency {worst.concurrency}",
        before=1.0,
        now=worst.ratio,
        allowed=performance.tolerance,
    )
