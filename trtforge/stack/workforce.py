"""The workers of the stack together: starting them, and ending them with the runs they work on."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from trtforge.stack.deploy import deploy
from trtforge.stack.lost_runs import put_down_lost_runs
from trtforge.stack.prefect_api import PrefectApi, Run
from trtforge.stack.service import Announce, ensure_running, stop
from trtforge.stack.worker import CpuWorker, StandInGpuWorker, Worker, WorkerLogin

_STOPPED = "ended by `trtforge down`"
_SHOWN = 5


def workers_of(home: Path, login: WorkerLogin) -> tuple[Worker, ...]:
    """Every worker a stack has."""
    return CpuWorker(home, login), StandInGpuWorker(home, login)


def start_workers(home: Path, login: WorkerLogin, announce: Announce) -> tuple[str, ...]:
    """Start those that do not run, on pools and deployments as the files say.

    Returns:
        The names of those that had to be started.

    Raises:
        StackDeployError: The pools and deployments could not be made.
        ServiceStartError: A worker did not report to its pool.
    """
    workers = workers_of(home, login)
    # With all of them at work it was done when they were started.
    if any(worker.find() is None for worker in workers):
        deploy(home, login, announce)
    try:
        put_down_lost_runs(PrefectApi(login.api_url, login.auth), workers, announce)
    except httpx.HTTPError as error:
        # An automation does the same ten minutes later.
        announce(f"runs that lost their process were not looked for: {type(error).__name__}")
    with ThreadPoolExecutor(max_workers=len(workers)) as pool:
        started = list(pool.map(lambda worker: ensure_running(worker, announce), workers))
    return tuple(w.name for w, fresh in zip(workers, started, strict=True) if fresh)


def end_workers(home: Path, login: WorkerLogin, announce: Announce) -> None:
    """Stop the workers; runs in progress are ended with all they started, and put down as such."""
    workers = workers_of(home, login)
    busy = {worker: worker.runs() for worker in workers}
    ids = set().union(*busy.values())
    api = PrefectApi(login.api_url, login.auth)
    runs: list[Run] = []
    lost: list[Run] = []
    try:
        runs = api.runs(ids)
        lost = [r for r in api.runs_in_progress() if r.pool is None and r.id not in ids]
    except httpx.HTTPError:
        # Its database or itself was killed. The processes are ended all the same.
        pass
    if ids:
        announce(f"ending {len(ids)} runs in progress: {_names(runs) or 'names unknown'}")
    if lost:
        announce(f"a build outside of the workers loses its server: {_names(lost)}")
    for worker, its_runs in busy.items():
        if worker.find() is not None:
            announce(f"stopping {worker.name}")
        if its_runs:
            worker.end_runs()
        stop(worker)
    if ids and not _put_down(api, ids):
        announce(
            "their states could not be written; the next `trtforge up` puts them down as crashed"
        )


def _put_down(api: PrefectApi, ids: set[str]) -> bool:
    try:
        for run in api.runs(ids):
            # One that was done a moment ago keeps its result.
            if not run.ended:
                api.cancel(run, _STOPPED)
    except httpx.HTTPError:
        return False
    return True


def _names(runs: Sequence[Run]) -> str:
    shown = ", ".join(sorted(run.name for run in runs)[:_SHOWN])
    return f"{shown} and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else shown
