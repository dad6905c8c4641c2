"""Task: the GPU half of a build, on a worker of a GPU pool.

The GPU run is a run of the deployment `gpu-stage/<pool>`. Its idempotency key is made of this run,
of what is asked, and of a number that goes up with each run that ended badly: whoever comes back
after a crash or a retry finds the run that is under way, or done.
"""

import time
from typing import cast
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling

from tasks.card_leases import free_cards_of
from tasks.gpu_waiting import tell_why_it_waits
from tasks.patience import patiently
from tasks.reporting import reported
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.errors import BuildError, InputError
from trtforge.progress import Announced, Progress, announcing
from trtforge.redaction import redacted_errors
from trtforge.spec import did_you_mean
from trtforge.stages.gpu import (
    GpuReport,
    GpuReportMissingError,
    GpuRequest,
    GpuRunBuildError,
    raise_failure,
    read_report,
)

GPU_FLOW = "gpu-stage"
_CRASHES = 3
_POLL_S = 3.0
_TELL_EVERY_S = 60.0
_CANCELLED = {StateType.CANCELLED, StateType.CANCELLING}


class GpuPoolUnknownError(InputError):
    """No deployment of gpu-stage has this name."""


class GpuRequestRefusedError(InputError):
    """The parameters do not fit what the deployment of gpu-stage takes."""


class GpuRunCrashedError(BuildError):
    """The GPU run died, and so did those started in its place: more of them would not help."""


class GpuRunCancelledError(BuildError):
    """Somebody cancelled the GPU run, but not the build that waits for it."""


def require_gpu_pool(pool: str) -> None:
    """Check that GPU runs can be started in a pool, before anything is done for one.

    Raises:
        GpuPoolUnknownError: There is no deployment `gpu-stage/<pool>`.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(f"{GPU_FLOW}/{pool}")
        except ObjectNotFound:
            flows = FlowFilter(name=FlowFilterName(any_=[GPU_FLOW]))
            known = [found.name for found in client.read_deployments(flow_filter=flows)]
            raise GpuPoolUnknownError(
                f"there is no deployment {GPU_FLOW}/{pool}",
                field="gpu_pool",
                value=pool,
                remedy=did_you_mean(pool, known) if known else "Run `trtforge deploy`",
            ) from None


@task(
    name="gpu",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=if_service_failed,
    cache_policy=NO_CACHE,
    persist_result=False,
)
@redacted_errors()
def ask_gpu_pool(request: GpuRequest, pool: str) -> GpuReport:
    """Have the GPU half done in `pool`, and wait for it.

    Raises:
        GpuRunInputError, GpuRunServiceError, GpuRunBuildError, GpuRunGateError: As the GPU run's.
        GpuRequestRefusedError: The deployment in `pool` is of another version of trtforge.
        GpuRunCrashedError: It died `_CRASHES` times: its worker, its machine or its memory.
        GpuRunCancelledError: It was cancelled by itself.
    """
    with reported("gpu"), Announced("gpu") as step:
        report, run = _ask(request, pool)
        step.message = f"run {run.name} in pool {pool}"
        return report


def _ask(request: GpuRequest, pool: str) -> tuple[GpuReport, FlowRun]:
    crashes = 0
    for attempt in range(1, 1000):
        run = _start(request, pool, attempt)
        # One that an earlier try of ours has seen end badly is not asked again.
        old = run.state is not None and run.state.is_final() and not run.state.is_completed()
        if old:
            continue
        state = _follow(run.id, pool)
        if not state.is_completed():
            _free_cards(run.id)
        if state.is_crashed():
            crashes += 1
            if crashes < _CRASHES:
                get_run_logger().warning(
                    "gpu: run %s crashed (%s); starting another", run.name, state.message
                )
                continue
            raise GpuRunCrashedError(
                f"the GPU run crashed {crashes} times: {state.message}",
                field="gpu_pool",
                value=pool,
                remedy=f"Look at the run {run.name}, at its worker and at the machine's memory",
            )
        return _report(run, state), run
    raise AssertionError("unreachable")


def _start(request: GpuRequest, pool: str, attempt: int) -> FlowRun:
    """The run of this attempt, which may be under way or over."""
    try:
        # The key makes it the same run, however often it is asked for.
        started = patiently(
            lambda: run_deployment(
                f"{GPU_FLOW}/{pool}",
                parameters={"request": request.model_dump(mode="json")},
                idempotency_key=f"gpu:{flow_run.id}:{request.key()}:{attempt}",
                timeout=0,
            )
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.CONFLICT:
            raise
        raise GpuRequestRefusedError(
            f"the server refuses what is asked of the GPU run: {_detail(error.response)}",
            field="gpu_pool",
            value=pool,
            remedy="Its deployment is of another version of trtforge: run `trtforge deploy`",
        ) from error
    return cast(FlowRun, started)


def _detail(response: httpx.Response) -> str:
    try:
        return " ".join(str(response.json()["detail"]).split())
    except (ValueError, KeyError, TypeError):
        return response.text


def _free_cards(run_id: UUID) -> None:
    """A run that was killed could not give its cards back."""
    with get_client(sync_client=True) as client:
        free_cards_of(client, patiently(lambda: client.read_flow_run(run_id)))


def _report(run: FlowRun, state: State[object]) -> GpuReport:
    report = read_report(task_workshop(force=False), str(run.id))
    if state.is_cancelled():
        raise GpuRunCancelledError(
            "the GPU run was cancelled",
            field="run",
            value=run.name,
            remedy="Run the build again; finished stages are kept",
        )
    if report is not None and report.failure is not None:
        raise_failure(report.failure)
    if not state.is_completed():
        raise GpuRunBuildError(
            f"the GPU run {run.name} failed: {state.message}", remedy="Look at its log"
        )
    if report is None:
        raise GpuReportMissingError(
            f"the GPU run {run.name} is done and left no report in the store",
            remedy="Check that its worker uses the same bucket (TRTFORGE_S3_BUCKET)",
        )
    return report


def _follow(run_id: UUID, pool: str) -> State[object]:
    """Wait for a run's end; cancelled with this one, it ends with it."""
    logger = get_run_logger()
    shown, told, cancelling = "", time.monotonic(), False
    with get_client(sync_client=True) as client:
        try:
            while True:
                run = patiently(lambda: client.read_flow_run(run_id))
                state = run.state
                if state is not None and state.is_final():
                    # Somebody cancelled it, and nobody saw its end.
                    lost = cancelling and state.is_crashed()
                    return Cancelled(message=state.message) if lost else state
                cancelling = state is not None and state.is_cancelling()
                name = str(state.name) if state else "waiting"
                if name != shown:
                    what = f"run {run.name} in pool {pool} is {name}"
                    announcing("gpu")(_step(what))
                    shown = name
                elif time.monotonic() - told > _TELL_EVERY_S:
                    told = time.monotonic()
                    tell_why_it_waits(client, run, logger)
                time.sleep(_POLL_S)
        except BaseException:
            # A worker that is stopped ends this run too, and the GPU run shall go on then.
            if _is_cancelled(client):
                client.set_flow_run_state(run_id, Cancelling(), force=False)
            raise


def _step(what: str) -> Progress:
    return Progress(what, 0, None, "steps")


def _is_cancelled(client: SyncPrefectClient) -> bool:
    state = client.read_flow_run(UUID(flow_run.id)).state if flow_run.id else None
    return state is not None and state.type in _CANCELLED
