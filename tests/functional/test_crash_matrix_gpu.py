"""The crash matrix, each event alone: what befalls the two halves of a build, and their workers.

See test_crash_matrix.py. `second attempt`: another GPU run in the place of the first, which the
build starts by itself.

    event                               what a user wants                      GPU run, build
    ----------------------------------  -------------------------------------  ---------------------
    cancel of the build                 compiler ended within seconds          Cancelled, Cancelled
    cancel of the GPU run               the build says so                      Cancelled, Failed
    kill -9 of the driver               told that memory ran out               Failed, Failed
    kill -9 of the GPU run              second attempt                         Crashed, Completed
    kill -9 of the GPU run, three times told after three, not tried for ever   Crashed, Failed
    kill -9 of the GPU worker           second attempt, or none needed         see the row
    SIGTERM of the GPU worker           second attempt at `trtforge up`        Crashed, Completed
    kill -9 of GPU worker and run       second attempt when it is back         Crashed, Completed
    kill -9 of worker and pending run   second attempt when it is back         Crashed, Completed
    gate fails                          told at once, not tried again          Failed, Failed
    wrong spec                          told at once, no GPU run               none, Failed
    gpu-stage deployed by another       told at once, with what to do          none, Failed
    version
"""

import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from models import write_tiny_model
from platform_crew import POOL, STUBBORN, Crew, standin_spec
from platform_processes import is_driver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
_seeds = count(100)
Spec = dict[str, Any]


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """Of a model that nobody has built."""
    return standin_spec(write_tiny_model(tmp_path / "tiny-crash", seed=next(_seeds)))


@pytest.fixture(autouse=True)
def _as_before(crew: Crew) -> Iterator[None]:
    """Whatever a row has killed works again for the next."""
    crew.fault("")
    yield
    crew.fault("")
    crew.up()


@pytest.fixture
def _zombies_end_soon(crew: Crew) -> Iterator[None]:
    """The automations of deployments/automations.yaml, in seconds where they have minutes.

    From the beginning: they count from the heartbeats and states that they have seen.
    """
    with crew.impatient_automations({"crash zombie runs": 75, "crash runs that never start": 90}):
        yield


def next_build_finds(crew: Crew, spec: Spec, stages: set[str]) -> None:
    """The same spec once more: it gets done, and these stages are not made again."""
    crew.fault("")
    build = crew.order(spec)
    assert crew.until_ended(build) == "COMPLETED", crew.story(build)
    [gpu] = crew.gpu_runs(build)
    assert crew.found_in_the_store(build) | crew.found_in_the_store(gpu["id"]) == stages
    crew.assert_nothing_is_left(build, gpu["id"])


def replaced(crew: Crew, build: str, first: str, how: str = "CRASHED") -> None:
    """A second GPU run was started, and did what the first had not."""
    crew.fault("")
    assert crew.until_ended(build, patience_s=300) == "COMPLETED", crew.story(build)
    runs = crew.gpu_runs(build)
    assert [run["state_type"] for run in runs] == [how, "COMPLETED"]
    assert runs[0]["id"] == first
    crew.assert_nothing_is_left(build, *(run["id"] for run in runs))


@pytest.mark.parametrize(
    "compiler", ["wait", STUBBORN], ids=["an ordinary compiler", "a stubborn one"]
)
def test_cancel_of_the_build(crew: Crew, spec: Spec, compiler: str) -> None:
    crew.fault(compiler)
    build = crew.order(spec)
    gpu = crew.until_compiling(build)
    crew.cancel(build)
    assert crew.until_ended(build, patience_s=150) == "CANCELLED"
    assert crew.until_ended(gpu, patience_s=150) == "CANCELLED"
    crew.assert_nothing_is_left(build, gpu)
    next_build_finds(crew, spec, {"pull", "convert"})


def test_cancel_of_the_gpu_run(crew: Crew, spec: Spec) -> None:
    crew.fault(STUBBORN)
    build = crew.order(spec)
    gpu = crew.until_compiling(build)
    crew.cancel(gpu)
    assert crew.until_ended(gpu, patience_s=150) == "CANCELLED"
    assert crew.until_ended(build, patience_s=150) == "FAILED"
    assert "the GPU run was cancelled" in crew.why(build)
    assert len(crew.gpu_runs(build)) == 1
    crew.assert_nothing_is_left(build, gpu)
    next_build_finds(crew, spec, {"pull", "convert"})


def test_kill_9_of_the_driver(crew: Crew, spec: Spec) -> None:
    crew.fault(STUBBORN)
    build = crew.order(spec)
    gpu = crew.until_compiling(build)
    [driver] = [p for p in crew.processes(gpu) if is_driver(p)]
    driver.kill()
    assert crew.until_ended(build, patience_s=150) == "FAILED"
    assert "ran out of memory" in crew.why(build)
    assert [run["state_type"] for run in crew.gpu_runs(build)] == ["FAILED"]
    crew.assert_nothing_is_left(build, gpu)
    next_build_finds(crew, spec, {"pull", "convert"})


def test_kill_9_of_the_gpu_run(crew: Crew, spec: Spec) -> None:
    crew.fault(STUBBORN)
    build = crew.order(spec)
    gpu = crew.until_compiling(build)
    crew.engine(gpu).kill()
    assert crew.until_ended(gpu, patience_s=90) == "CRASHED"
    replaced(crew, build, gpu)
    next_build_finds(crew, spec, {"pull", "convert", "compile", "benchmark", "publish"})


def test_kill_9_of_every_gpu_run(crew: Crew, spec: Spec) -> None:
    crew.fault("wait")
    build = crew.order(spec)
    for attempt in (1, 2, 3):
        crew.engine(crew.until_compiling(build, attempt)).kill()
    assert crew.until_ended(build, patience_s=150) == "FAILED"
    assert "crashed 3 times" in crew.why(build)
    runs = crew.gpu_runs(build)
    assert [run["state_type"] for run in runs] == ["CRASHED"] * 3
    crew.assert_nothing_is_left(build, *(run["id"] for run in runs))
    # Who asks for the same build again gets the next ones, not those.
    crew.fault("")
    crew.retry(build)
    assert crew.until_ended(build) == "COMPLETED"
    crew.assert_nothing_is_left(build, crew.gpu_runs(build)[-1]["id"])


def test_kill_9_of_the_gpu_worker(crew: Crew, spec: Spec) -> None:
    crew.fault("wait")
    build = crew.order(spec)
    gpu = crew.until_compiling(build)
    crew.kill_worker(crew.gpu)
    crew.up()
    crew.fault("")
    assert crew.until_ended(build, patience_s=300) == "COMPLETED", crew.story(build)
    # It outlives its worker; were it to break with it, the build would have started another.
    *lost, last = crew.gpu_runs(build)
    assert last["state_type"] == "COMPLETED"
    assert [run["state_type"] for run in lost] == ["CRASHED"] * len(lost)
    crew.assert_nothing_is_left(build, gpu, last["id"])


def test_sigterm_of_the_gpu_worker(crew: Crew, spec: Spec) -> None:
    """No automation is waited for: `trtforge up` finds out itself."""
    crew.fault(STUBBORN)
    build = crew.order(spec)
    gpu = crew.until_compiling(build)
    crew.kill_worker(crew.gpu, signal.SIGTERM)
    assert crew.until("end of its processes", lambda: not crew.processes(gpu), 40)
    assert crew.run(gpu)["state_type"] == "RUNNING"
    crew.look_for_lost_runs()
    assert crew.run(gpu)["state_type"] == "CRASHED"
    assert crew.run(build)["state_type"] == "RUNNING"
    crew.up()
    replaced(crew, build, gpu)
    next_build_finds(crew, spec, {"pull", "convert", "compile", "benchmark", "publish"})


@pytest.mark.usefixtures("_zombies_end_soon")
def test_kill_9_of_the_gpu_worker_and_its_run(crew: Crew, spec: Spec) -> None:
    crew.fault(STUBBORN)
    build = crew.order(spec)
    gpu = crew.until_compiling(build)
    crew.kill_worker(crew.gpu)
    crew.engine(gpu).kill()
    assert crew.run(gpu)["state_type"] == "RUNNING"
    crew.up()
    replaced(crew, build, gpu)


@pytest.mark.usefixtures("_zombies_end_soon")
def test_kill_9_of_the_gpu_worker_before_its_run_began(crew: Crew, spec: Spec) -> None:
    build = crew.order(spec)

    def pending() -> str | None:
        return next((r["id"] for r in crew.gpu_runs(build) if r["state_type"] == "PENDING"), None)

    gpu = crew.until("pending GPU run", pending, 150)
    crew.kill_worker(crew.gpu)
    for process in crew.processes(gpu):
        process.kill()
    assert crew.run(gpu)["state_type"] == "PENDING"
    crew.up()
    replaced(crew, build, gpu)


def test_a_failed_gate(crew: Crew, spec: Spec) -> None:
    before = dict(crew.forge.store.list_aliases())
    crew.fault("reference-other")
    build = crew.order(spec)
    assert crew.until_ended(build) == "FAILED"
    [gpu] = crew.gpu_runs(build)
    assert "answers are wrong" in crew.why(build)
    assert crew.tries(gpu["id"])["gate"] == crew.tries(build)["gpu"] == 1
    crew.assert_nothing_is_left(build, gpu["id"])
    assert dict(crew.forge.store.list_aliases()) == before
    # The same engine fails again, without being made or measured again.
    again = crew.order(spec)
    assert crew.until_ended(again) == "FAILED"
    [gpu] = crew.gpu_runs(again)
    assert crew.found_in_the_store(gpu["id"]) == {"compile", "benchmark"}
    assert dict(crew.forge.store.list_aliases()) == before


def test_a_wrong_spec(crew: Crew, spec: Spec) -> None:
    spec["engine"]["options"] = {"gemm_plugn": "auto"}
    build = crew.order(spec)
    assert crew.until_ended(build) == "FAILED"
    assert "gemm_plugin" in crew.why(build)
    assert crew.gpu_runs(build) == []
    crew.assert_nothing_is_left(build)


def test_a_gpu_pool_that_another_version_was_deployed_to(crew: Crew, spec: Spec) -> None:
    found = crew.ask("GET", f"deployments/name/gpu-stage/{POOL}")
    place, schema = f"deployments/{found['id']}", found["parameter_openapi_schema"]
    other = {"type": "object", "properties": {"request": {"type": "integer"}}}
    crew.ask("PATCH", place, {"parameter_openapi_schema": other})
    try:
        build = crew.order(spec)
        assert crew.until_ended(build) == "FAILED"
    finally:
        crew.ask("PATCH", place, {"parameter_openapi_schema": schema})
    assert "Its deployment is of another version of trtforge" in crew.why(build)
    assert not [line for line in crew.messages(build) if "Retry 1/" in line]
    assert crew.gpu_runs(build) == []
    next_build_finds(crew, spec, {"pull", "convert"})
