"""Tasks: measure a published engine again, here or in a GPU pool, and look at its history."""

from collections.abc import Mapping
from typing import Any, cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from tasks.cards import held_cards_if_gpu
from tasks.events import emit_regression
from tasks.reporting import reported
from tasks.reporting.artifacts import show_markdown
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.benchmark.regression import Regression, find_regression
from trtforge.benchmark.trend import trend
from trtforge.errors import BuildError, InputError
from trtforge.progress import announcing
from trtforge.stages.bench import bench
from trtforge.store.benchmarks import BenchmarkRecord, Benchmarks

FLOW = "benchmark-engine"
_TASK: dict[str, Any] = {
    "retries": 1,
    "retry_delay_seconds": 10,
    "retry_condition_fn": if_service_failed,
    "timeout_seconds": 4 * 3600,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


class BenchmarkPoolUnknownError(InputError):
    """The pool has no deployment of benchmark-engine."""


class AliasGoneError(InputError):
    """Somebody removed the alias meanwhile."""


class BenchmarkRunError(BuildError):
    """The benchmark in the GPU pool did not end well."""


def engine_of(model: str, alias: str, gpu: str, backend: str) -> str:
    """The id of the engine that an alias points at.

    Raises:
        AliasUnknownError, AliasAmbiguousError: No or no single alias is meant.
    """
    aliases = task_workshop(force=False).store.aliases
    name = aliases.find(model, alias, gpu=gpu or None, backend=backend or None)
    record = aliases.get(name)
    if record is None:
        raise AliasGoneError(
            "the alias was removed just now", field="alias", value=alias, remedy="Run it again"
        )
    return record.engine_id


@task(name="bench", **_TASK)
def measure_engine(engine: str, changes: Mapping[str, Any]) -> str:
    """Measure on this worker, alone on its GPU; the id of the run that is kept."""
    shop = task_workshop(force=False)
    manifest = shop.store.get_manifest(engine)
    with (
        reported("bench", engine_id=manifest.engine_id),
        held_cards_if_gpu(manifest.core.built_with, manifest.core.ranks),
    ):
        done = bench(shop, manifest.engine_id, changes, on_progress=announcing("bench"))
    show_markdown("benchmark-report", done.markdown, done.location)
    return done.record.run_id


@task(name="bench-in-pool", **_TASK)
def measure_in_pool(engine: str, changes: Mapping[str, Any], pool: str) -> None:
    """Have the same flow run on a worker of the pool, and wait for it.

    Raises:
        BenchmarkPoolUnknownError: There is no deployment `benchmark-engine/<pool>`.
        BenchmarkRunError: It failed there.
    """
    try:
        run = cast(
            FlowRun,
            run_deployment(
                f"{FLOW}/{pool}",
                parameters={"engine": engine, "benchmark": dict(changes), "judge": False},
                idempotency_key=f"bench:{flow_run.id}:{flow_run.run_count}",
            ),
        )
    except ObjectNotFound as error:
        raise BenchmarkPoolUnknownError(
            f"there is no deployment {FLOW}/{pool}",
            field="gpu_pool",
            value=pool,
            remedy="Copy its entry in deployments/prefect.yaml, and run `trtforge deploy`",
        ) from error
    if run.state is None or not run.state.is_completed():
        said = run.state.message if run.state else "no state"
        raise BenchmarkRunError(
            f"the run {run.name} in pool {pool} did not end well: {said}",
            remedy="Look at its log",
        )


@task(name="judge-trend", **_TASK)
def judge_trend(engine: str, alias: str, allowed: float) -> Regression | None:
    """Draw the engine's history; tell the world when its newest benchmark is a regression."""
    store = task_workshop(force=False).store
    manifest = store.get_manifest(engine)
    history: list[BenchmarkRecord] = Benchmarks(store.bucket).of(manifest.engine_id)
    found = find_regression(history[-1], history[:-1], allowed)
    about = f"How quick engine {manifest.engine_id[:12]} was, and is"
    show_markdown("benchmark-trend", trend(history, found), about)
    if found:
        get_run_logger().warning("bench: %s", found)
        emit_regression(
            manifest.core.model.name,
            engine_id=manifest.engine_id,
            than_engine_id=manifest.engine_id,
            alias=alias,
            metric=found.metric,
            before=found.before,
            now=found.now,
            allowed=allowed,
        )
    return found
