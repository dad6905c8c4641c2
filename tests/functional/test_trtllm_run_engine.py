"""Engines built and run with the trtllm backend, in the stand-in toolchain: real processes.

A run that is ended, for whatever reason, leaves no process behind, not even ranks, which mpirun
puts into process groups of their own.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from models import write_tiny_model
from standin.environment import STANDIN_PYTHON, standin_environment
from standin_engine import expected_tokens, write_engine

from trtforge import checkpoint
from trtforge.checkpoint.target import Target
from trtforge.engines.base import RunOutcome
from trtforge.engines.driver_process import DriverTimeoutError
from trtforge.engines.trtllm import run
from trtforge.engines.trtllm.backend import TrtllmBackend
from trtforge.progress import Progress, ignore
from trtforge.spec import EngineSpec

Configure = Callable[..., None]
_MARK = "TRTFORGE_STANDIN_MARK"
_LIMITS = {"max_batch_size": 2, "max_input_len": 48, "max_seq_len": 96, "max_num_tokens": 96}
JOB = {"id": "job", "prompts": [[5, 6, 7]], "max_new_tokens": 4}


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Choose what the stand-in does: `configure(fault="run-hang", gpus=2)`."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in standin_environment(**{_MARK: str(tmp_path)}).items():
        monkeypatch.setenv(name, value)

    def choose(**how: object) -> None:
        for name, value in how.items():
            monkeypatch.setenv(f"TRTFORGE_STANDIN_{name.upper()}", str(value))

    return choose


def marked(tmp_path: Path) -> list[psutil.Process]:
    """The processes this test started that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == str(tmp_path) and process.is_running():
                found.append(process)
    return found


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def perform(tmp_path: Path, engine: Path, **more: Any) -> dict[str, Any]:
    work = tmp_path / "run"
    work.mkdir(exist_ok=True)
    arguments = {
        "jobs": [JOB],
        "logits_dir": work,
        "work_dir": work,
        "on_progress": ignore,
        "on_log": lambda _line: None,
        **more,
    }
    return run.run_for_facts(STANDIN_PYTHON, "1.2.1", engine_dir=engine, **arguments)


def test_the_releases_own_benchmark_is_kept_beside_ours(
    tmp_path: Path, configure: Configure
) -> None:
    configure()
    model = write_tiny_model(tmp_path / "model")
    engine = write_engine(tmp_path / "engine")
    work = tmp_path / "work"
    work.mkdir()
    measured = TrtllmBackend(STANDIN_PYTHON).bench(
        EngineSpec.model_validate({"backend": "trtllm", **_LIMITS}),
        engine_dir=engine,
        model_dir=model,
        model_name="tiny",
        jobs=[JOB],
        out_dir=tmp_path,
        work_dir=work,
        on_progress=ignore,
        on_log=lambda _line: None,
    )
    assert measured is not None
    assert measured["headline"]["output_tokens_per_s"] > 0
    assert (tmp_path / measured["report"]).is_file()
    assert "--backend" in measured["command"]
    assert json.loads(json.dumps(measured)) == measured


@pytest.mark.parametrize("tp", [1, 2])
def test_what_the_backend_builds_it_runs(tmp_path: Path, configure: Configure, tp: int) -> None:
    configure(gpus=tp)
    model = write_tiny_model(tmp_path / "model", with_tokenizer=False)
    checkpoint.convert(model, tmp_path / "checkpoint", Target(tp=tp))
    backend = TrtllmBackend(STANDIN_PYTHON)
    spec = EngineSpec.model_validate({"backend": "trtllm", **_LIMITS})
    work = tmp_path / "work"
    work.mkdir()
    backend.build(
        spec,
        toolchain=backend.probe(spec, work),
        checkpoint_dir=tmp_path / "checkpoint",
        engine_dir=tmp_path / "engine",
        cache_in=None,
        cache_out=tmp_path / "model.cache",
        work_dir=work,
        on_progress=ignore,
        on_log=lambda _line: None,
    )

    heard: list[Progress] = []
    outcome: RunOutcome = backend.run(
        spec,
        engine_dir=tmp_path / "engine",
        jobs=[{**JOB, "logits": True}, {**JOB, "id": "load", "warmups": 1, "repeats": 2}],
        logits_dir=work,
        work_dir=work,
        on_progress=heard.append,
        on_log=lambda _line: None,
    )

    check, load = outcome.outputs
    assert check["tokens"] == load["tokens"] == [expected_tokens(JOB["prompts"][0], 4, 512)]  # type: ignore[index]
    assert len(load["request_s"]) == 2
    assert outcome.load_s > 0
    assert any(progress.what == "warming up load" for progress in heard)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_cancelled_leaves_no_process(
    tmp_path: Path, configure: Configure, ranks: int
) -> None:
    configure(fault="run-hang", gpus=ranks)
    engine = write_engine(tmp_path / "engine", ranks=ranks)
    failures: list[Exception] = []

    class CancelledError(Exception):
        pass

    cancel = threading.Event()

    def on_progress(_: Progress) -> None:
        # How a stage cancels: its callback raises.
        if cancel.wait(60):
            raise CancelledError

    def work() -> None:
        try:
            perform(tmp_path, engine, on_progress=on_progress)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    # The driver, what holds the ranks together, and the ranks themselves.
    wait_until(lambda: len(marked(tmp_path)) >= (2 if ranks == 1 else 4))
    cancel.set()
    thread.join(60)
    assert isinstance(failures[0], CancelledError)
    wait_until(lambda: not marked(tmp_path), 10)


def test_a_run_over_its_time_leaves_no_rank(tmp_path: Path, configure: Configure) -> None:
    configure(fault="run-hang", gpus=2)
    engine = write_engine(tmp_path / "engine", ranks=2)
    with pytest.raises(DriverTimeoutError):
        perform(tmp_path, engine, timeout_s=4)
    wait_until(lambda: not marked(tmp_path), 10)


def test_ranks_go_when_their_mpirun_is_killed(tmp_path: Path, configure: Configure) -> None:
    configure(fault="run-hang", gpus=2)
    engine = write_engine(tmp_path / "engine", ranks=2)
    failures: list[Exception] = []

    def work() -> None:
        try:
            perform(tmp_path, engine)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: len(marked(tmp_path)) >= 4)
    mpirun = next(p for p in marked(tmp_path) if "tensorrt_llm.mpirun" in " ".join(p.cmdline()))
    mpirun.kill()
    thread.join(60)
    assert isinstance(failures[0], run.HostMemoryError)
    wait_until(lambda: not marked(tmp_path), 10)


def test_teardown_that_hangs_does_not_cost_the_result(tmp_path: Path, configure: Configure) -> None:
    configure(fault="run-hang-at-exit")
    engine = write_engine(tmp_path / "engine")
    result = perform(tmp_path, engine, teardown_s=1)
    assert result["outputs"][0]["tokens"] == [expected_tokens([5, 6, 7], 4)]
    wait_until(lambda: not marked(tmp_path), 10)
