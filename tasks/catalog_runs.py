"""What Prefect knows of the catalogue's builds: earlier ones, those under way, their workers."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterStartTime,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from tasks.gpu import GPU_FLOW
from trtforge.catalog import CellPlan
from trtforge.errors import ServiceError

BUILDER = "build-engine/cpu"
TAG = "catalog"

_KEY_DIGITS = 24
_PAGE = 200
_AT_ONCE = 100
_BAD = {StateType.FAILED, StateType.CRASHED}


class BuilderMissingError(ServiceError):
    """Nothing on the Prefect server builds engines."""


@dataclass(frozen=True)
class History:
    """The builds of one cell with one key.

    Attributes:
        active: The one that is under way.
        attempt: Number of the next one, above those of all that have ended.
        failures: How many of the latest failed, one after the other.
        last: What the latest failure said.
    """

    active: FlowRun | None = None
    attempt: int = 0
    failures: int = 0
    last: str = ""


def histories(
    client: SyncPrefectClient, keys: Sequence[str], before: datetime
) -> dict[str, History]:
    """What became of the builds of these keys; those that ended after `before` are not over.

    (A build that ends while the catalogue is planned was not seen by the plan. Asked for again
    under the same number, it is found and not begun anew.)
    """
    found: dict[str, list[FlowRun]] = {key: [] for key in keys}
    by_tag = {_tag(key): key for key in keys}
    tags = list(by_tag)
    for start in range(0, len(tags), _AT_ONCE):
        wanted = FlowRunFilter(tags=FlowRunFilterTags(any_=tags[start : start + _AT_ONCE]))
        for run in _paged(client, flow_run_filter=wanted):
            for tag in set(run.tags) & by_tag.keys():
                found[by_tag[tag]].append(run)
    return {key: _history(runs, before) for key, runs in found.items()}


def _history(runs: Sequence[FlowRun], before: datetime) -> History:
    ended = [run for run in runs if run.end_time is not None and run.end_time <= before]
    active = next((r for r in runs if r.state is not None and not r.state.is_final()), None)
    ended.sort(key=lambda run: run.end_time or before, reverse=True)
    failures, last = 0, ""
    for run in ended:
        kind = run.state.type if run.state else None
        if kind == StateType.COMPLETED:
            break
        if kind in _BAD:  # a person who cancels one says nothing about the next
            failures += 1
            last = last or message(run)
    # Prefect forgets old runs, and a number that was used finds the run that used it.
    attempt = max((_attempt(run) for run in ended), default=-1) + 1
    return History(active, attempt, failures, last)


def _attempt(run: FlowRun) -> int:
    number = (run.idempotency_key or "").rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def start_build(plan: CellPlan, attempt: int) -> FlowRun:
    """Start the build of a cell, or find the one that was started for the same reason."""
    cell, key = plan.cell, str(plan.key)
    run: Any = run_deployment(
        BUILDER,
        parameters={"spec": cell.spec.model_dump(mode="json"), "gpu_pool": cell.gpu.pool},
        flow_run_name=cell.name,
        tags=[TAG, _tag(key)],
        idempotency_key=f"catalog:{key}:{attempt}",
        timeout=0,
    )
    found: FlowRun = run
    return found


def runs_by_id(client: SyncPrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    """The runs as they are now."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(ids)))
    return list(_paged(client, flow_run_filter=wanted)) if ids else []


def gpu_minutes_since(client: SyncPrefectClient, pools: Collection[str], since: datetime) -> float:
    """Minutes that runs of gpu-stage took on these pools, whoever started them."""
    runs = _paged(
        client,
        flow_filter=FlowFilter(name=FlowFilterName(any_=[GPU_FLOW])),
        flow_run_filter=FlowRunFilter(start_time=FlowRunFilterStartTime(after_=cast(Any, since))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=sorted(pools))),
    )
    return sum(run.estimated_run_time.total_seconds() for run in runs) / 60


def worker_is_online(client: SyncPrefectClient, pool: str) -> bool:
    """Whether somebody takes runs of this pool; where Prefect itself does, always."""
    try:
        found = client.read_work_pool(pool)
        if found.is_paused:
            return False
        if found.is_push_pool or found.is_managed_pool:
            return True
        workers = client.read_workers_for_work_pool(pool)
    except ObjectNotFound:
        return False
    return any(worker.status == WorkerStatus.ONLINE for worker in workers)


def builders_pool(client: SyncPrefectClient) -> str | None:
    """The work pool of the deployment that builds.

    Raises:
        BuilderMissingError: There is no such deployment.
    """
    try:
        return client.read_deployment_by_name(BUILDER).work_pool_name
    except ObjectNotFound:
        raise BuilderMissingError(
            "the Prefect server has no such deployment",
            field="deployment",
            value=BUILDER,
            remedy="Run `trtforge deploy`",
        ) from None


def page(run: FlowRun) -> str:
    """Where a person reads about a run."""
    return url_for("flow-run", obj_id=run.id) or str(run.id)


def message(run: FlowRun) -> str:
    """How it ended, in a line."""
    state = run.state
    if state is None:
        return ""
    return " ".join((state.message or state.name or "").split())


def _tag(key: str) -> str:
    return f"cell:{key[:_KEY_DIGITS]}"


def _paged(client: SyncPrefectClient, **filters: Any) -> Iterator[FlowRun]:
    offset = 0
    while True:
        runs = client.read_flow_runs(
            **filters, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=_PAGE, offset=offset
        )
        yield from runs
        if len(runs) < _PAGE:
            return
        offset += _PAGE
