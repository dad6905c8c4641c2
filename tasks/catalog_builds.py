"""The builds of a catalogue's run: started as pools, window and budget allow, and followed.

The run that follows them holds no GPU, and needs none of them to end well. One that dies leaves
the builds as they are; the next run of the catalogue finds them by their keys.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.objects import FlowRun

from tasks.catalog import replanned
from tasks.catalog_runs import (
    History,
    builders_pool,
    gpu_minutes_since,
    histories,
    message,
    page,
    runs_by_id,
    start_build,
    worker_is_online,
)
from trtforge.catalog import Allowance, Budgeted, Catalog, CellPlan, choose
from trtforge.catalog.matrix import Matrix
from trtforge.catalog.window import is_open, next_opening, start_of_day
from trtforge.errors import ServiceError, TrtforgeError
from trtforge.store.records import now

ARTIFACT = "catalog-matrix"
_POLL_S = 5.0
_MOST_BYTES = 400_000


class CatalogNotPlannedError(ServiceError):
    """Nothing of the catalogue could be compared with its sources and the store."""


class MatrixArtifact:
    """The matrix as one table artifact of this run, which changes as builds end."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self._id: UUID | None = None
        self._shown = ""

    def show(self) -> None:
        rows = self.matrix.rows()
        data, cut = json.dumps(rows), 0
        while len(data) > _MOST_BYTES:  # what nothing happened to is last
            rows, cut = rows[: len(rows) // 2], cut + len(rows) - len(rows) // 2
            data = json.dumps(rows)
        description = self.matrix.summary() + (f" ({cut} more are not shown)" if cut else "")
        if data == self._shown:
            return
        try:
            if self._id is None:
                made = create_table_artifact(table=rows, key=ARTIFACT, description=description)
                self._id = cast(UUID, made)
            else:
                update = ArtifactUpdate(data=data, description=description)
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._id, update)
            self._shown = data
        except Exception as error:  # a picture of the work must never end the work
            get_run_logger().warning("the matrix was not shown: %s", error)


def require_planned(plans: Sequence[CellPlan]) -> None:
    """Refuse to call a run a success that could not plan anything.

    Raises:
        CatalogNotPlannedError: Not one cell was planned.
    """
    if plans and not any(plan.is_planned for plan in plans):
        first = plans[0]
        raise CatalogNotPlannedError(
            f"none of the {len(plans)} cells could be planned; {first.cell.name} is "
            f"{first.status}: {'; '.join(first.why)}",
            remedy="Put right what the table catalog-matrix tells, and run it again",
        )


def build_changed(
    catalog: Catalog,
    plans: Sequence[CellPlan],
    shown: MatrixArtifact,
    *,
    planned_at: datetime,
    ignore_window: bool,
    insist: bool,
) -> None:
    """Build what changed, and follow it to its end; the matrix tells what became of each cell.

    Args:
        planned_at: When planning began.
        insist: Somebody named these models: try again what has failed before.
    """
    with get_client(sync_client=True) as client:
        builds = _Builds(client, catalog, shown, ignore_window, planned_at)
        builds.take(plans, insist=insist)
        shown.show()
        builds.follow()
        shown.show()


class _Builds:
    def __init__(
        self,
        client: SyncPrefectClient,
        catalog: Catalog,
        shown: MatrixArtifact,
        ignore_window: bool,
        planned_at: datetime,
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._shown = shown
        self._matrix = shown.matrix
        self._ignore_window = ignore_window
        self._planned_at = planned_at
        self._queue: list[Budgeted] = []
        self._running: dict[UUID, Budgeted] = {}
        self._histories: dict[str, History] = {}
        self._log = get_run_logger()

    def take(self, plans: Sequence[CellPlan], *, insist: bool) -> None:
        """Sort the changed cells: to follow, to start, or to leave for another day."""
        changed = [plan for plan in plans if plan.status == "changed" and plan.key]
        if not changed:
            return
        keys = [str(plan.key) for plan in changed]
        self._histories = histories(self._client, keys, self._planned_at)
        budget = self._catalog.budget
        active = [plan for plan in changed if self._history(plan).active]
        waiting = []
        for plan in changed:
            history = self._history(plan)
            if history.active:
                continue
            if history.failures >= self._catalog.attempts and not insist:
                why = (
                    f"{history.failures} builds failed; the last: {history.last}. Name the model "
                    "in `only` to try again"
                )
                self._matrix.set(plan.cell.name, "failing", why)
                continue
            waiting.append(plan)
        promised = 0.0
        for item in choose(active, budget, Allowance(None), known=plans):
            promised += item.minutes
            run = self._history(item.plan).active
            assert run is not None
            self._follow(item, run)
        for item in choose(waiting, budget, self._allowance(promised), known=plans):
            state = "queued" if item.fits else "over budget"
            self._matrix.set(item.plan.cell.name, state, gpu_minutes=item.minutes)
            if item.fits:
                self._queue.append(item)

    def follow(self) -> None:
        """Start what may start, and wait for what was started."""
        deadline = time.monotonic() + self._catalog.follow_for.total_seconds()
        while self._queue or self._running:
            self._look()
            self._start()
            self._shown.show()
            if not self._running:  # and what is queued has nobody to build it
                return
            if time.monotonic() > deadline:
                self._leave()
                return
            time.sleep(_POLL_S)

    def _allowance(self, promised_minutes: float) -> Allowance:
        budget = self._catalog.budget
        spent = 0.0
        if budget.gpu_minutes_per_day is not None:
            pools = {gpu.pool for gpu in self._catalog.gpus.values()}
            midnight = start_of_day(now(), self._catalog.timezone)
            spent = gpu_minutes_since(self._client, pools, midnight)
            self._log.info("%.0f GPU minutes were used today", spent)
        return Allowance.of(budget, spent + promised_minutes)

    def _start(self) -> None:
        if not self._queue or self._is_closed():
            return
        absent = self._absent({item.plan.cell.gpu.pool for item in self._queue})
        at_work = Counter(item.plan.cell.gpu.pool for item in self._running.values())
        for item in list(self._queue):
            cell = item.plan.cell
            if cell.gpu.pool in absent:
                why = f"{_why(item.plan)}; no worker of pool {absent[cell.gpu.pool]} is online"
                self._matrix.set(cell.name, "no worker", why)
            elif at_work[cell.gpu.pool] < cell.gpu.at_once:
                at_work[cell.gpu.pool] += 1
                self._queue.remove(item)
                self._begin(item)
            else:
                self._matrix.set(cell.name, "queued", _why(item.plan))

    def _absent(self, pools: set[str]) -> dict[str, str]:
        """GPU pools in which nothing can be built now, and whose workers are missing."""
        builder = builders_pool(self._client)
        if builder and not worker_is_online(self._client, builder):
            return dict.fromkeys(pools, builder)
        return {pool: pool for pool in pools if not worker_is_online(self._client, pool)}

    def _begin(self, item: Budgeted) -> None:
        try:
            run = start_build(item.plan, self._history(item.plan).attempt)
        except Exception as error:  # one build that cannot be started is no reason against others
            self._log.error("%s was not started: %s", item.plan.cell.name, error)
            self._matrix.set(item.plan.cell.name, "failed", f"it could not be started: {error}")
            return
        self._follow(item, run)

    def _follow(self, item: Budgeted, run: FlowRun) -> None:
        self._running[run.id] = item
        name = item.plan.cell.name
        self._matrix.set(name, "running", _why(item.plan), gpu_minutes=item.minutes, run=page(run))
        self._log.info("building %s (%s): %s", name, _why(item.plan), page(run))

    def _look(self) -> None:
        for run in runs_by_id(self._client, list(self._running)):
            if run.state is None or not run.state.is_final():
                continue
            item = self._running.pop(run.id)
            if run.state.is_completed():
                self._built(item)
            else:
                state = "cancelled" if run.state.is_cancelled() else "failed"
                why = f"{message(run)} (changed: {_why(item.plan)})"
                self._matrix.set(item.plan.cell.name, state, why)
                self._log.warning("%s %s: %s", item.plan.cell.name, state, message(run))

    def _built(self, item: Budgeted) -> None:
        """Believe the store, not the run: is the engine there, and in use?"""
        cell = item.plan.cell
        try:
            plan = replanned(self._catalog, cell)
        except TrtforgeError as error:
            self._matrix.set(cell.name, "built", f"{_why(item.plan)} (not checked: {error})")
            return
        engine = plan.engine.engine_id if plan.engine else ""
        timings = plan.engine.timings if plan.engine else {}
        seconds = sum(timings.get(stage, 0.0) for stage in ("compile", "benchmark"))
        why = _why(item.plan)
        if plan.status != "up to date":
            why = f"{why}; and since: {'; '.join(plan.why)}"
        self._matrix.set(
            cell.name, "built", why, engine=engine, gpu_minutes=seconds / 60 if seconds else None
        )
        self._log.info("built %s", cell.name)

    def _is_closed(self) -> bool:
        window, at = self._catalog.build_window, now()
        if self._ignore_window or is_open(window, at):
            return False
        opening = next_opening(window, at)
        for item in self._queue:
            why = f"{_why(item.plan)}; builds start again at {opening:%Y-%m-%d %H:%M %Z}"
            self._matrix.set(item.plan.cell.name, "outside the window", why)
        self._queue.clear()
        return True

    def _leave(self) -> None:
        hours = self._catalog.follow_for.total_seconds() / 3600
        for item in self._running.values():
            self._matrix.set(item.plan.cell.name, "still running", f"followed for {hours:.0f} h")
        for item in self._queue:
            self._matrix.set(
                item.plan.cell.name, "not started", f"its turn did not come in {hours:.0f} h"
            )

    def _history(self, plan: CellPlan) -> History:
        return self._histories[str(plan.key)]


def _why(plan: CellPlan) -> str:
    return "; ".join(plan.why)
