"""Tasks: what the pools have, and what the catalogue needs. Nothing is built here."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote

from tasks.catalog_runs import runs_by_id, worker_is_online
from tasks.gpu import GPU_FLOW
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.catalog import Catalog, Cell, CellPlan, load_catalog, plan_catalog
from trtforge.catalog.planning import find_sighting
from trtforge.settings import load_settings
from trtforge.store.records import now
from trtforge.store.sightings import variant

_PATIENCE_S = 600.0
_POLL_S = 3.0


def read_catalog() -> tuple[Catalog, tuple[Cell, ...]]:
    """The catalogue of this machine: TRTFORGE_CATALOG, or the one that came with trtforge."""
    return load_catalog(load_settings().catalog)


def plan_cells(catalog: Catalog, cells: Sequence[Cell], *, ignore_schedule: bool) -> list[CellPlan]:
    """Compare the cells with their sources, their pools and the store."""
    # Prefect would otherwise search every spec for the results of other tasks.
    return _plan(quote((catalog, tuple(cells))), ignore_schedule)


@task(
    name="plan-catalog",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=if_service_failed,
    timeout_seconds=1800,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def _plan(asked: Any, ignore_schedule: bool) -> list[CellPlan]:
    catalog, cells = asked.unquote() if isinstance(asked, quote) else asked
    shop = task_workshop(force=False)
    started = time.monotonic()
    plans = plan_catalog(shop, catalog, cells, now(), ignore_schedule=ignore_schedule)
    changed = [plan for plan in plans if plan.status == "changed"]
    logger = get_run_logger()
    logger.info(
        "planned %d cells in %.1f s: %d changed",
        len(plans),
        time.monotonic() - started,
        len(changed),
    )
    for plan in changed:
        logger.info("changed: %s (%s)", plan.cell.name, "; ".join(plan.why))
    return plans


def replanned(catalog: Catalog, cell: Cell) -> CellPlan:
    """The plan of one cell as it is now, after its build."""
    shop = task_workshop(force=False)
    return plan_catalog(shop, catalog, [cell], now(), ignore_schedule=True)[0]


def look_again(catalog: Catalog, cells: Sequence[Cell]) -> dict[str, str]:
    """Have a worker of each pool look at its toolchain, where nobody did for a day.

    Returns:
        What was wrong, by pool; a pool that is not there is none of those that are waited for.
    """
    logger = get_run_logger()
    troubles: dict[str, str] = {}
    looking: dict[UUID, str] = {}
    with get_client(sync_client=True) as client:
        for pool in _unseen(catalog, cells):
            trouble = _why_not(client, pool)
            if trouble:
                troubles[pool] = trouble
                logger.warning("pool %s was not looked at: %s", pool, trouble)
                continue
            run: Any = run_deployment(
                f"{GPU_FLOW}/{pool}",
                idempotency_key=f"look:{flow_run.id}:{pool}",
                timeout=0,
            )
            looking[run.id] = pool
            logger.info("looking at the toolchain of pool %s", pool)
        troubles |= _await(client, looking)
    return troubles


def _unseen(catalog: Catalog, cells: Sequence[Cell]) -> list[str]:
    store = task_workshop(force=False).store
    # Cells of one pool and kind of engine share a sighting; it is read once.
    kinds = {(c.gpu.pool, c.spec.engine.backend, variant(c.spec.engine)): c for c in cells}
    pools: dict[str, None] = {}
    for cell in kinds.values():
        sighting = find_sighting(store, cell)
        if sighting is None or now() - sighting.seen_at > catalog.look_again_after:
            pools[cell.gpu.pool] = None
    return list(pools)


def _why_not(client: SyncPrefectClient, pool: str) -> str:
    try:
        client.read_deployment_by_name(f"{GPU_FLOW}/{pool}")
    except ObjectNotFound:
        return f"there is no deployment {GPU_FLOW}/{pool}; add it, and run `trtforge deploy`"
    return "" if worker_is_online(client, pool) else f"no worker of pool {pool} is online"


def _await(client: SyncPrefectClient, looking: dict[UUID, str]) -> dict[str, str]:
    troubles: dict[str, str] = {}
    left = dict(looking)
    deadline = time.monotonic() + _PATIENCE_S
    while left and time.monotonic() < deadline:
        for run in runs_by_id(client, list(left)):
            if run.state is None or not run.state.is_final():
                continue
            pool = left.pop(run.id)
            if run.state.type != StateType.COMPLETED:
                troubles[pool] = f"looking at its toolchain ended badly: {run.state.message}"
        if left:
            time.sleep(_POLL_S)
    late = f"no answer about its toolchain within {_PATIENCE_S / 60:.0f} minutes"
    return troubles | dict.fromkeys(left.values(), late)
