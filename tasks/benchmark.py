"""Task: speed and correctness of the engine against the original model."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.reporting import reported
from tasks.reporting.artifacts import show_table
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.card import benchmark_rows
from trtforge.engines.base import Toolchain
from trtforge.files import FileRef
from trtforge.spec import BuildSpec
from trtforge.stages.benchmark import benchmark
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import StageOutcome


@task(
    name="benchmark",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=if_service_failed,
    timeout_seconds=4 * 3600,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def benchmark_engine(
    spec: BuildSpec,
    model: PulledModel,
    engine: tuple[FileRef, ...],
    toolchain: Toolchain,
    force: bool,
) -> StageOutcome:
    """Measure both in one run."""
    with reported("benchmark"):
        outcome = benchmark(task_workshop(force=force), spec, model, engine, toolchain)
    rows = benchmark_rows(outcome.result.facts)
    show_table("benchmark-table", rows, "The engine beside eager PyTorch")
    return outcome
