"""What happens when a part of the platform dies: one row per event, all with real processes.

The GPU worker compiles with the stand-in for TensorRT-LLM, which waits, resists and dies on demand.
After every row no process of the runs is left, no slot of any limit is taken, every byte in the
store is whole, and the next build of the same spec finds the stages that were finished.

    event                                    what a user wants, and gets
    ---------------------------------------  -------------------------------------------------------
    kill -9 of the GPU run, then cancel of   another GPU run in its place, on the card of the first;
    the build, the compiler ignoring         then both cancelled, and the compiler gone with all it
    SIGTERM, in sessions of its own          started
    kill -9 of the build and its worker;     the GPU run goes on to its end, waits for the store to
    then server, PostgreSQL and SeaweedFS    put the engine there; the retried build finds it, and
    killed and started; SeaweedFS away       compiles nothing again
    while the compiler ends; then retry
    compilation fails                        told at once, and not tried again

Slow rows, each event alone: tests/functional/test_crash_matrix_gpu.py (cancel and kill),
test_crash_matrix_services.py (server, PostgreSQL, SeaweedFS). docs/when-things-break.md tells it to
those who run a platform.
"""

import re
import time
from pathlib import Path

import pytest
from models import write_tiny_model
from platform_crew import STUBBORN, Crew, standin_spec
from platform_processes import is_compiler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-crash", seed=60)


def test_a_killed_gpu_run_is_replaced_and_a_cancelled_build_takes_all_with_it(
    crew: Crew, model: Path
) -> None:
    crew.fault(STUBBORN)
    build = crew.order(standin_spec(model))
    first = crew.until_compiling(build)
    crew.engine(first).kill()
    # On the card that the first one could not give back.
    second = crew.until_compiling(build, attempt=2)
    assert crew.run(first)["state_type"] == "CRASHED"
    assert crew.processes(first) == []
    crew.cancel(build)
    assert crew.until_ended(build) == "CANCELLED"
    assert crew.until_ended(second) == "CANCELLED"
    crew.assert_nothing_is_left(build, first, second)
    assert list(crew.forge.store.list_aliases(model.name)) == []


def test_a_retried_build_finds_its_gpu_run_done_after_everything_else_was_killed(
    crew: Crew, model: Path
) -> None:
    crew.fault("wait")
    build = crew.order(standin_spec(model))
    gpu = crew.until_compiling(build)
    [compiler] = [p for p in crew.processes(gpu) if is_compiler(p)]
    crew.kill_worker(crew.cpu)
    crew.engine(build).kill()
    for slug in ("prefect", "postgres", "seaweedfs"):
        crew.kill(slug)
    crew.up()
    # It still works, and still holds its card.
    assert compiler.is_running()
    assert crew.cards() == [1]
    # The engine gets done while there is nowhere to put it.
    crew.kill("seaweedfs")
    crew.fault("")
    time.sleep(15)
    crew.up()
    assert crew.until_ended(gpu) == "COMPLETED"
    # Nobody saw the build end; the automation for zombies would say so in ten minutes.
    crew.put_down_as_crashed(build)
    crew.retry(build)
    assert crew.until_ended(build) == "COMPLETED"
    assert [run["id"] for run in crew.gpu_runs(build)] == [gpu]
    assert crew.found_in_the_store(build) == {"pull", "convert"}
    assert crew.made(gpu) == {"compile", "benchmark", "publish"}
    crew.assert_nothing_is_left(build, gpu)
    [(_, alias)] = crew.forge.store.list_aliases(model.name)
    # What people see of it in the UI (tests/browser looks at the pages).
    card = crew.artifacts(build)["engine-card"]
    assert card.startswith(f"# Engine {alias.engine_id[:12]}\n")
    assert len(re.findall(r"^!\[.*\]\(data:image/svg", card, re.MULTILINE)) == 2
    assert {"plan", "gpu-progress"} <= set(crew.artifacts(build))
    assert {"benchmark-table", "manifest", "compile-progress"} <= set(crew.artifacts(gpu))


def test_a_failed_compilation_is_told_at_once_and_not_tried_again(crew: Crew, model: Path) -> None:
    crew.fault("gpu-oom")
    # Another shape: the engine of the row before would be found.
    build = crew.order(standin_spec(model, max_seq_len=80))
    assert crew.until_ended(build) == "FAILED"
    [gpu] = crew.gpu_runs(build)
    assert gpu["state_type"] == "FAILED"
    assert "210571452800" in crew.why(build)
    assert crew.tries(gpu["id"])["compile"] == crew.tries(build)["gpu"] == 1
    crew.assert_nothing_is_left(build, gpu["id"])
