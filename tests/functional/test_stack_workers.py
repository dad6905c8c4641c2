"""The workers of `trtforge up`: started on deployed pools, replaced when killed, ended by `down`.

What a worker that was stopped or killed has left on the server, the next `up` puts down.

One stack with its workers for the module; `down`, the last test, ends it.
"""

import atexit
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from forge import prefect_http

from trtforge.stack import StackInfo, StackPorts, down, services, status, up
from trtforge.stack import process as processes
from trtforge.stack import state as stack_state
from trtforge.stack.worker import CpuWorker, Worker

POOLS = {"cpu": "CPU worker", "gpu-standin": "GPU stand-in worker"}
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def own() -> Iterator[StackInfo]:
    home = Path(tempfile.mkdtemp(prefix="trtforge-workers-"))
    # As root, PostgreSQL runs as another user, who has to get in.
    home.chmod(0o711)
    atexit.register(down, home)
    with pytest.MonkeyPatch.context() as environment:
        # A worker works with the environment of whoever ran `up`.
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        try:
            yield up(home, StackPorts.free())
        finally:
            down(home)
            atexit.unregister(down)
            shutil.rmtree(home)


@pytest.fixture(scope="module")
def patient(own: StackInfo) -> str:
    """The id of a deployment of `patient_flow` on the pool cpu."""
    with prefect_http(own) as http:
        flow = http.post("flows/", json={"name": "patient"}).raise_for_status().json()
        made = http.post(
            "deployments/",
            json={
                "name": "cpu",
                "flow_id": flow["id"],
                "work_pool_name": "cpu",
                "entrypoint": "patient_flow.patient",
                "pull_steps": [],
            },
        )
    return str(made.raise_for_status().json()["id"])


def eventually(what: str, found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return value


def start(own: StackInfo, deployment: str, directory: Path) -> str:
    """A run of `patient`, at work."""
    parameters = {"parameters": {"directory": str(directory)}}
    with prefect_http(own) as http:
        made = http.post(f"deployments/{deployment}/create_flow_run", json=parameters)
    eventually("a run at work", (directory / "child").exists)
    return str(made.raise_for_status().json()["id"])


def state(own: StackInfo, run: str) -> dict[str, Any]:
    with prefect_http(own) as http:
        found: dict[str, Any] = http.get(f"flow_runs/{run}").raise_for_status().json()["state"]
    return found


def set_state(own: StackInfo, run: str, kind: str) -> None:
    body = {"state": {"type": kind, "name": kind.capitalize()}}
    with prefect_http(own) as http:
        answer = http.post(f"flow_runs/{run}/set_state", json=body).raise_for_status().json()
    assert answer["status"] == "ACCEPT"


def worker(own: StackInfo) -> Worker:
    (found,) = (service for service in services(own.home) if isinstance(service, CpuWorker))
    return found


def engines(own: StackInfo) -> list[psutil.Process]:
    """The processes of the runs themselves, without what they have started."""
    return [of for of, _ in processes.marked(worker(own).mark) if "prefect.engine" in of.cmdline()]


def states(own: StackInfo) -> dict[str, str]:
    return {service.name: service.state for service in status(own.home)}


def test_up_deploys_and_starts_a_worker_for_each_pool(own: StackInfo) -> None:
    assert set(POOLS.values()) < set(own.started)
    assert set(states(own).values()) == {"healthy"}
    with prefect_http(own) as http:
        for pool in POOLS:
            (found,) = http.post(f"work_pools/{pool}/workers/filter", json={}).json()
            assert (found["name"], found["status"]) == (f"trtforge-{pool}", "ONLINE")
        for deployment in ("build-engine/cpu", "gpu-stage/gpu-standin"):
            assert http.get(f"deployments/name/{deployment}").status_code == 200


def test_no_secret_is_on_a_command_line_or_in_a_log_of_theirs(own: StackInfo) -> None:
    given = stack_state.read(own.home)
    assert given is not None
    secrets = (str(given.prefect_auth).partition(":")[2], given.s3.secret_access_key)
    for service in services(own.home):
        if isinstance(service, Worker):
            shown = "\n".join(" ".join(of.cmdline()) for of, _ in processes.marked(service.mark))
            assert service.worker_name in shown
            assert not [secret for secret in secrets if secret in shown]
            log = service.log_path.read_text()
            assert log
            assert not [secret for secret in secrets if secret in log]


def test_a_second_up_neither_starts_nor_deploys(own: StackInfo) -> None:
    lines: list[str] = []
    assert up(own.home, announce=lines.append).started == ()
    assert len(lines) == len(states(own))
    assert all("is running" in line for line in lines)


def test_a_run_outlives_its_worker_which_the_next_up_replaces(
    own: StackInfo, patient: str, tmp_path: Path
) -> None:
    run = start(own, patient, tmp_path)
    leader = worker(own).find()
    assert leader is not None
    os.kill(leader.pid, signal.SIGKILL)
    eventually("the end of the worker", lambda: not processes.alive(leader))
    assert states(own)["CPU worker"] == "dead"
    # Not healthy because the one before it has reported a moment ago: its own report counts.
    assert up(own.home).started == ("CPU worker",)
    assert worker(own).runs() == {run}
    assert state(own, run)["type"] == "RUNNING"
    (tmp_path / "end").touch()
    eventually("the end of the run", lambda: state(own, run)["type"] != "RUNNING")
    assert state(own, run)["type"] == "COMPLETED"
    eventually("the end of its process", lambda: not worker(own).runs())


@pytest.mark.parametrize(
    ("by", "before", "after"),
    [
        (signal.SIGTERM, "RUNNING", "CRASHED"),
        (signal.SIGKILL, "CANCELLING", "CANCELLED"),
    ],
)
def test_up_puts_down_a_run_that_has_lost_its_process_and_no_other(
    own: StackInfo,
    patient: str,
    tmp_path: Path,
    by: signal.Signals,
    before: str,
    after: str,
) -> None:
    (tmp_path / "lost").mkdir()
    (tmp_path / "other").mkdir()
    run = start(own, patient, tmp_path / "lost")
    leader = worker(own).find()
    assert leader is not None
    if by is signal.SIGTERM:
        # A worker takes its runs with it, and says nothing of them.
        leader.send_signal(by)
    else:
        processes.kill([leader])
        set_state(own, run, "CANCELLING")
        processes.kill(engines(own))
    eventually("the end of the worker", lambda: not processes.alive(leader))
    eventually("the end of the run", lambda: not engines(own))
    assert state(own, run)["type"] == before

    lines: list[str] = []
    assert up(own.home, announce=lines.append).started == ("CPU worker",)
    ended = state(own, run)
    assert (ended["type"], ended["message"]) == (
        after,
        "its process was gone when `trtforge up` looked for it",
    )
    assert any(f"is {after.capitalize()}: its process was gone" in line for line in lines)
    # What it had started is not left either.
    assert worker(own).runs() == set()

    # One that is at work is left so.
    other = start(own, patient, tmp_path / "other")
    up(own.home)
    assert state(own, other)["type"] == "RUNNING"
    (tmp_path / "other" / "end").touch()
    eventually("the end of the run", lambda: state(own, other)["type"] != "RUNNING")
    assert state(own, other)["type"] == "COMPLETED"


def test_down_ends_runs_with_all_they_started_and_says_so(
    own: StackInfo, patient: str, tmp_path: Path
) -> None:
    run = start(own, patient, tmp_path)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    everything = [of for s in services(own.home) for of, _ in processes.marked(s.mark)]
    assert child in everything
    lines: list[str] = []
    down(own.home, lines.append)
    assert any(line.startswith("ending 1 runs in progress: ") for line in lines)
    assert lines.index("stopping CPU worker") < lines.index("stopping Prefect server")
    assert [of for of in everything if processes.alive(of)] == []
    assert set(states(own).values()) == {"stopped"}
    # It was asked before it was killed.
    assert (tmp_path / "cleaned").exists()
    up(own.home, workers=False)
    ended = state(own, run)
    assert (ended["type"], ended["message"]) == ("CANCELLED", "ended by `trtforge down`")
