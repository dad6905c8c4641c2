"""The crash matrix, each event alone: the server, PostgreSQL, SeaweedFS and the build's own worker.

See test_crash_matrix.py. In every row a GPU run is compiling when it happens.

    event                                  what a user wants, and gets
    -------------------------------------  ---------------------------------------------------------
    server killed, back after 20 s         both runs go on and complete; the GPU run keeps its card
                                           and its slot through the restart: leases are on the disk
    server away for 90 s, while the        the same: whoever needs it waits, for eight minutes
    compiler gets done
    PostgreSQL killed and started          the same
    SeaweedFS killed, back after 15 s,     the upload of the engine waits for it
    while the engine is made
    kill -9 of the build's worker          the build goes on, or is retried and finds its GPU run
    kill -9 of the build and its worker,   the retried build finds the GPU run that goes on, and
    retried while the GPU run compiles     waits for that one
"""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from models import write_tiny_model
from platform_crew import POOL, Crew, standin_spec

from trtforge.stack import service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
_seeds = count(200)
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
    crew.limit_gpu_runs(1)


def gone_for(crew: Crew, slug: str, seconds: float) -> None:
    crew.kill(slug)
    time.sleep(seconds)
    service.ensure_running(crew.service(slug), lambda _: None)


def compiling(crew: Crew, spec: Spec) -> tuple[str, str]:
    crew.fault("wait")
    build = crew.order(spec)
    return build, crew.until_compiling(build)


def completed(crew: Crew, build: str, gpu: str) -> None:
    """Both ended well, the GPU run at the first attempt; nothing is left, all is in the store."""
    crew.fault("")
    assert crew.until_ended(gpu) == "COMPLETED", crew.story(build)
    assert crew.until_ended(build) == "COMPLETED", crew.story(build)
    assert [run["id"] for run in crew.gpu_runs(build)] == [gpu]
    crew.assert_nothing_is_left(build, gpu)


def test_the_server_is_killed_and_comes_back(crew: Crew, spec: Spec) -> None:
    build, gpu = compiling(crew, spec)
    before = crew.slots()
    assert crew.cards() == [1]
    gone_for(crew, "prefect", 20)
    assert crew.slots() == before
    # Long enough for leases that had been forgotten to be called back.
    time.sleep(10)
    assert crew.slots() == before
    completed(crew, build, gpu)


def test_the_server_is_away_for_longer_than_one_back_off(crew: Crew, spec: Spec) -> None:
    crew.limit_gpu_runs(None)
    build, gpu = compiling(crew, spec)
    crew.kill("prefect")
    # Meanwhile the engine gets done, and a new stage wants to begin.
    crew.fault("")
    time.sleep(90)
    service.ensure_running(crew.service("prefect"), lambda _: None)
    completed(crew, build, gpu)


def test_postgresql_is_killed_and_comes_back(crew: Crew, spec: Spec) -> None:
    build, gpu = compiling(crew, spec)
    gone_for(crew, "postgres", 5)
    completed(crew, build, gpu)


def test_the_store_is_killed_while_the_engine_is_made(crew: Crew, spec: Spec) -> None:
    build, gpu = compiling(crew, spec)
    crew.kill("seaweedfs")
    crew.fault("")
    time.sleep(15)
    service.ensure_running(crew.service("seaweedfs"), lambda _: None)
    completed(crew, build, gpu)


def test_kill_9_of_the_builds_worker(crew: Crew, spec: Spec) -> None:
    build, gpu = compiling(crew, spec)
    crew.kill_worker(crew.cpu)
    crew.up()
    print("after kill -9 of the build's worker:", crew.run(build)["state"])
    completed(crew, build, gpu)


def test_a_build_retried_while_its_gpu_run_goes_on(crew: Crew, spec: Spec) -> None:
    build, gpu = compiling(crew, spec)
    crew.kill_worker(crew.cpu)
    crew.engine(build).kill()
    crew.put_down_as_crashed(build)
    crew.up()
    crew.retry(build)
    crew.until("build that waits again", lambda: crew.waits_for(build, POOL), 150)
    assert [run["id"] for run in crew.gpu_runs(build)] == [gpu]
    completed(crew, build, gpu)
