"""What a build tells while its GPU run does not run yet: what it waits for, and who can help."""

import logging

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool

from tasks.patience import patiently

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def tell_why_it_waits(client: SyncPrefectClient, run: FlowRun, log: Log) -> None:
    """Log why `run` waits, as a warning where it would wait for ever; nothing once it runs."""
    name = run.work_pool_name
    if name is None or (run.state is not None and run.state.is_running()):
        return
    workers = patiently(lambda: client.read_workers_for_work_pool(name))
    online = any(worker.status == "ONLINE" for worker in workers)
    level, reason = why_it_waits(run, patiently(lambda: client.read_work_pool(name)), online)
    if reason:
        log.log(level, "gpu: %s", reason)


def why_it_waits(run: FlowRun, pool: WorkPool, worker_online: bool) -> tuple[int, str]:
    """A level of logging, and the reason in one line; empty once the run has begun.

    Args:
        run: As the server has it now.
        worker_online: Whether any worker of the pool reports to the server.
    """
    state = run.state
    kind, name = (state.type, state.name) if state else (StateType.SCHEDULED, "Scheduled")
    who = f"run {run.name} is {name}"
    start = (
        f"no worker of pool {pool.name} is online: start one with "
        f"`prefect worker start --pool {pool.name}`, on a machine with the GPU"
    )
    match kind:
        case StateType.SCHEDULED if name == "AwaitingRetry":
            return logging.INFO, f"{who}: it begins again by itself"
        case StateType.SCHEDULED if name == "AwaitingConcurrencySlot":
            return logging.INFO, f"{who}: its deployment has a limit of runs, and others go first"
        case StateType.SCHEDULED if pool.is_paused:
            return logging.WARNING, f"{who}: pool {pool.name} is paused; resume it in the UI"
        case StateType.SCHEDULED if worker_online:
            return logging.INFO, f"{who}: waiting for a place in pool {pool.name}"
        case StateType.SCHEDULED:
            return logging.WARNING, start
        case StateType.PENDING if worker_online:
            # Taken: no other run goes first any more.
            return logging.INFO, f"{who}: a worker of pool {pool.name} has taken it and starts it"
        case StateType.PENDING:
            return logging.WARNING, f"{who}, and the worker that took it is gone; {start}"
        case StateType.PAUSED:
            return logging.WARNING, f"{who}: resume it in the UI"
        case StateType.CANCELLING:
            return logging.INFO, f"{who}: waiting for its end"
    return logging.INFO, ""
