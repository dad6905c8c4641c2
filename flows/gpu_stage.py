"""Flow: what needs a GPU, and nothing else. compile → benchmark → gates → publish and try."""

from prefect import flow
from prefect.runtime import flow_run

from tasks.benchmark import benchmark_engine
from tasks.cards import held_cards
from tasks.compile import compile_checkpoint
from tasks.gates import judge_engine
from tasks.publish import publish_engine
from tasks.reporting import observed_run
from tasks.toolchain import look_at_all_toolchains, look_at_toolchain
from tasks.workshop import task_workshop
from trtforge import telemetry
from trtforge.engines.base import Toolchain
from trtforge.errors import TrtforgeError
from trtforge.stages.compile import engine_files
from trtforge.stages.gpu import (
    GpuReport,
    GpuRequest,
    ReportedStage,
    failure_of,
    put_report,
    reported_stage,
    requested,
)


def _run_name() -> str:
    request = flow_run.parameters.get("request")
    return f"gpu {request.source}" if isinstance(request, GpuRequest) else "look at the toolchain"


@flow(
    name="gpu-stage",
    description="Compile, measure and judge one engine on this worker's GPU; publish it.",
    flow_run_name=_run_name,
    persist_result=False,
    validate_parameters=True,
)
def gpu_stage(request: GpuRequest | None = None) -> None:
    """The GPU half of a build, on a worker that has the GPU and its toolchain.

    Started by build-engine. Its answer lies in the store, below runs/<id of this run>.

    Args:
        request: What to do; none: only look which toolchain this worker has.
    """
    traceparent, model = (request.traceparent, request.source) if request else ("", None)
    with observed_run("gpu-stage", traceparent=traceparent, model=model):
        if request is None:
            look_at_all_toolchains()
        else:
            _do(request)


def _do(request: GpuRequest) -> None:
    shop = task_workshop(force=request.force)
    done: list[ReportedStage] = []
    report = GpuReport(toolchain={})
    try:
        with held_cards(request.spec.ranks):
            toolchain = look_at_toolchain(request.spec.engine)
            report = report.model_copy(update={"toolchain": toolchain.to_json()})
            with telemetry.gpu_held(toolchain.gpu_name, request.spec.ranks):
                report = compile_and_measure(request, toolchain, done)
    except TrtforgeError as error:
        failed = {"stages": tuple(done), "failure": failure_of(error)}
        put_report(shop, report.model_copy(update=failed))
        raise
    put_report(shop, report)


def compile_and_measure(
    request: GpuRequest, toolchain: Toolchain, done: list[ReportedStage]
) -> GpuReport:
    """The tasks of the GPU half, in this flow run; `done` tells how far they came."""
    spec, force = request.spec, request.force
    model, converted = requested(task_workshop(force=force), request)
    compiled = compile_checkpoint(spec, converted.outputs, toolchain, force)
    done.append(reported_stage(compiled))
    engine = engine_files(compiled.result.outputs)
    measured = benchmark_engine(spec, model, engine, toolchain, force)
    done.append(reported_stage(measured))
    gated = judge_engine(request, model, converted, compiled.result, measured.result, toolchain)
    if gated.outcome:
        done.append(reported_stage(gated.outcome))
    published = publish_engine(spec, gated.manifest, toolchain, force)
    done.append(reported_stage(published.outcome))
    return GpuReport(
        toolchain=toolchain.to_json(),
        stages=tuple(done),
        engine_id=published.manifest.engine_id,
        answer=published.answer,
    )
