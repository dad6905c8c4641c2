"""What a build says of a GPU run that does not run yet: what is so, and who can help."""

import logging
import uuid

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPool

from tasks.gpu_waiting import why_it_waits

INFO, WARNING = logging.INFO, logging.WARNING


def waiting(
    kind: StateType, name: str, *, online: bool = True, paused: bool = False
) -> tuple[int, str]:
    run = FlowRun(name="amber-lynx", flow_id=uuid.uuid4(), state=State(type=kind, name=name))
    pool = WorkPool(name="gpu-h100", type="docker", is_paused=paused)
    return why_it_waits(run, pool, online)


@pytest.mark.parametrize("name", ["Pending", "Submitting", "InfrastructurePending"])
def test_a_run_that_a_worker_has_taken_waits_for_no_other(name: str) -> None:
    level, said = waiting(StateType.PENDING, name)
    assert level == INFO
    assert said == (
        f"run amber-lynx is {name}: a worker of pool gpu-h100 has taken it and starts it"
    )


def test_a_run_whose_worker_went_before_it_began_wants_another_worker() -> None:
    level, said = waiting(StateType.PENDING, "Pending", online=False)
    assert level == WARNING
    assert "the worker that took it is gone" in said
    assert "prefect worker start --pool gpu-h100" in said


@pytest.mark.parametrize("name", ["Scheduled", "Late"])
def test_a_run_that_nobody_has_taken_waits_for_a_place_or_for_a_worker(name: str) -> None:
    assert waiting(StateType.SCHEDULED, name) == (
        INFO,
        f"run amber-lynx is {name}: waiting for a place in pool gpu-h100",
    )
    level, said = waiting(StateType.SCHEDULED, name, online=False)
    assert level == WARNING
    assert said.startswith("no worker of pool gpu-h100 is online: start one with")


@pytest.mark.parametrize(
    ("kind", "name", "paused", "level", "said"),
    [
        (StateType.SCHEDULED, "Late", True, WARNING, "pool gpu-h100 is paused; resume it"),
        (StateType.SCHEDULED, "AwaitingConcurrencySlot", False, INFO, "a limit of runs"),
        (StateType.SCHEDULED, "AwaitingRetry", False, INFO, "begins again by itself"),
        (StateType.PAUSED, "Paused", False, WARNING, "resume it in the UI"),
        (StateType.CANCELLING, "Cancelling", False, INFO, "waiting for its end"),
    ],
)
def test_other_reasons_are_named(
    kind: StateType, name: str, paused: bool, level: int, said: str
) -> None:
    told_level, told = waiting(kind, name, paused=paused)
    assert told_level == level
    assert told.startswith(f"run amber-lynx is {name}: ")
    assert said in told


@pytest.mark.parametrize("name", ["Running", "Retrying"])
def test_a_run_that_has_begun_waits_for_nothing(name: str) -> None:
    assert waiting(StateType.RUNNING, name)[1] == ""
