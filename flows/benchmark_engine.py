"""Flow: measure the engine in use again, and say so when it has become slower."""

from typing import Annotated, Any

from prefect import State, flow
from prefect.states import Completed
from pydantic import Field

from tasks.bench import engine_of, judge_trend, measure_engine, measure_in_pool
from tasks.reporting.runs import observed_run

_Share = Annotated[float, Field(gt=0, lt=1, json_schema_extra={"position": 6})]


@flow(
    name="benchmark-engine",
    description="Measure a published engine again; history, trend, and an event on regression.",
    flow_run_name="benchmark {model} {engine}",
    persist_result=False,
    validate_parameters=True,
)
def benchmark_engine(
    model: Annotated[str, Field(json_schema_extra={"position": 0})] = "",
    alias: Annotated[str, Field(json_schema_extra={"position": 1})] = "latest",
    gpu: Annotated[str, Field(json_schema_extra={"position": 2})] = "",
    backend: Annotated[str, Field(json_schema_extra={"position": 3})] = "",
    gpu_pool: Annotated[str, Field(json_schema_extra={"position": 4})] = "",
    engine: Annotated[str, Field(json_schema_extra={"position": 5})] = "",
    allowed: _Share = 0.05,
    benchmark: Annotated[dict[str, Any] | None, Field(json_schema_extra={"position": 7})] = None,
    judge: Annotated[bool, Field(json_schema_extra={"position": 8})] = True,
) -> State[Any]:
    """Re-benchmark the engine that an alias points to, and keep it with the engine's history.

    Args:
        model: Name of the model, as `trtforge list` shows it.
        alias: Which of its engines: the one that this alias points to.
        gpu: GPU of the alias, where the model has it on several.
        backend: Backend of the alias, where it has several.
        gpu_pool: Work pool whose worker measures, such as gpu-docker; empty: this machine.
        engine: Id of an engine, instead of a model and an alias.
        allowed: Share by which it may be slower than the median of its last five benchmarks.
        benchmark: What differs from the benchmark it was built with, such as workload: chat.
        judge: Look at the history; off where another run does that.
    """
    with observed_run("benchmark-engine", model=model, gpu_pool=gpu_pool):
        engine_id = engine or engine_of(model, alias, gpu, backend)
        changes = benchmark or {}
        if gpu_pool:
            measure_in_pool(engine_id, changes, gpu_pool)
        else:
            measure_engine(engine_id, changes)
        if not judge:
            return Completed(message=f"Measured engine {engine_id[:12]}")
        regression = judge_trend(engine_id, alias, allowed)
        return Completed(message=str(regression) if regression else "No regression")
