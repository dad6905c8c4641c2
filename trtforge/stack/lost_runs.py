"""Runs of the stack whose process is gone without a word: nobody else knows before ten minutes.

A worker that is ended by SIGTERM takes the processes of its runs with it, and so does a machine
that goes down; the runs stay "Running" on the server. The next `up` looks for those processes: the
workers of the stack are of this machine. Checked with Prefect 3.8.8.
"""

from collections.abc import Sequence
from pathlib import Path

import psutil

from trtforge.stack import process
from trtforge.stack.prefect_api import PrefectApi
from trtforge.stack.service import Announce
from trtforge.stack.worker import RUN_ID, Worker

_MESSAGE = "its process was gone when `trtforge up` looked for it"


def put_down_lost_runs(api: PrefectApi, workers: Sequence[Worker], announce: Announce) -> None:
    """Crash the runs of these workers that have no process any more; those being cancelled, cancel.

    What such a run had started and left behind, a compiler for one, is ended. Automations and
    waiting builds go on from there. A run that has not begun is left to its worker while that is at
    work, and a run of anybody else's worker is left alone.

    Raises:
        httpx.HTTPError: The server does not answer.
    """
    by_name = {worker.worker_name: worker for worker in workers}
    at_work = {name for name, worker in by_name.items() if worker.find() is not None}
    ours = [
        run
        for run in api.runs_in_progress()
        if run.worker in by_name
        and run.pool == by_name[run.worker].pool
        and not (run.state_type == "PENDING" and run.worker in at_work)
    ]
    alive = _runs_with_a_process()
    gone = {run.id: run for run in ours if run.id not in alive and not _may_be_alive(run.pid)}
    # Asked again: what a process has reported, it had reported before it was gone.
    for run in api.runs(gone):
        if run.state_type == "CANCELLING":
            api.cancel(run, _MESSAGE)
            told = "Cancelled"
        elif run.state_type == gone[run.id].state_type and api.crash(run, _MESSAGE):
            told = "Crashed"
        else:
            continue
        announce(f"run {run.name} is {told}: {_MESSAGE}")
        left = [
            of for w in workers for of, env in process.marked(w.mark) if env.get(RUN_ID) == run.id
        ]
        process.kill(left)


def _runs_with_a_process() -> set[str]:
    """Ids of the runs whose own process is on this machine, whoever started it."""
    found = set()
    for of in psutil.process_iter():
        try:
            run_id = of.environ().get(RUN_ID)
            if run_id and _is_prefect(of):
                found.add(run_id)
        except (psutil.Error, OSError):
            continue
    return found


def _may_be_alive(pid: str | None) -> bool:
    """Whether the process that the worker started is still there, marked as the run's or not."""
    if pid is None or not pid.isdecimal():
        return False
    try:
        return _is_prefect(psutil.Process(int(pid)))
    except psutil.AccessDenied:
        return True
    except (psutil.Error, OSError):
        return False


def _is_prefect(of: psutil.Process) -> bool:
    """Whether it is `python -m prefect.engine`, `prefect flow-run execute` or the like."""
    return any(Path(word).name == "prefect" or word.startswith("prefect.") for word in of.cmdline())
