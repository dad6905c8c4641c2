"""What a build tells of a GPU run that waits, as the Prefect server has it."""

import logging

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending, Running

from tasks.gpu_waiting import tell_why_it_waits

POOL = "gpu-of-nobody"


def test_it_is_told_what_is_so_and_nothing_once_the_run_has_begun(
    prefect_client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("told")
    caplog.set_level(logging.INFO, logger="told")

    def told(run: FlowRun) -> list[tuple[int, str]]:
        caplog.clear()
        tell_why_it_waits(prefect_client, prefect_client.read_flow_run(run.id), log)
        return [(record.levelno, record.getMessage()) for record in caplog.records]

    prefect_client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    flow = prefect_client.create_flow_from_name("waits")
    deployment = prefect_client.create_deployment(flow, "waits", work_pool_name=POOL)
    try:
        run = prefect_client.create_flow_run_from_deployment(deployment)
        start = f"start one with `prefect worker start --pool {POOL}`, on a machine with the GPU"
        nobody = f"no worker of pool {POOL} is online: {start}"
        assert told(run) == [(logging.WARNING, f"gpu: {nobody}")]

        prefect_client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
        [(level, line)] = told(run)
        assert level == logging.WARNING
        assert line.endswith(f"pool {POOL} is paused; resume it in the UI")

        prefect_client.set_flow_run_state(run.id, Pending(name="Submitting"))
        assert told(run) == [
            (
                logging.WARNING,
                f"gpu: run {run.name} is Submitting, and the worker that took it is gone; {nobody}",
            )
        ]
        prefect_client.set_flow_run_state(run.id, Running())
        assert told(run) == []
    finally:
        prefect_client.delete_flow(flow)
        prefect_client.delete_work_pool(POOL)
