"""NVIDIA's own benchmark: the command line of each release, its report, and its failures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from standin_engine import STANDIN_PYTHON, write_engine

from trtforge.engines.driver_process import DriverTimeoutError
from trtforge.engines.trtllm.bench import (
    BenchReport,
    BenchReportError,
    BenchUnsuitableError,
    requests_of_jobs,
    run_trtllm_bench,
)
from trtforge.engines.trtllm.bench_report import headline_of_log, headline_of_report
from trtforge.engines.trtllm.run import GpuMemoryError, RequestTooLargeError

REQUESTS = [{"input_ids": [1, 2, 3], "output_tokens": 4}, {"input_ids": [4, 5], "output_tokens": 4}]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TRTFORGE_STANDIN_PYTHON", sys.executable)
    return monkeypatch


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def measured(
    tmp_path: Path, model_dir: Path, version: str = "1.2.1", engine: Any = None, **more: Any
) -> BenchReport:
    for name in ("work", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    return run_trtllm_bench(
        STANDIN_PYTHON,
        version,
        engine_dir=engine or write_engine(tmp_path / "engine", version=version),
        model_dir=model_dir,
        model_name="tiny",
        requests=more.pop("requests", REQUESTS),
        out_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        **more,
    )


def option(command: tuple[str, ...], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("mode", ["throughput", "latency"])
def test_the_report_is_kept_and_its_headline_told(
    tmp_path: Path, model_dir: Path, mode: Any
) -> None:
    found = measured(tmp_path, model_dir, mode=mode, concurrency=2)
    assert found.report == f"trtllm-bench-{mode}.json"
    kept = json.loads((tmp_path / "out" / found.report).read_text())
    assert kept["performance"]["total_latency_ms"] == 500.0
    assert found.headline["total_s"] == pytest.approx(0.5)
    assert found.headline["requests"] == 2
    assert found.headline["output_tokens_per_s"] == pytest.approx(16)
    assert found.headline["avg_ttft_s"] == pytest.approx(0.02)
    # Without it 1.x would run PyTorch.
    assert option(found.command, "--backend") == "tensorrt"
    assert option(found.command, "--concurrency") == "2"


def test_0_16_reports_on_its_output_only(
    standin: pytest.MonkeyPatch, tmp_path: Path, model_dir: Path
) -> None:
    standin.setenv("TRTFORGE_STANDIN_VERSION", "0.16.0")
    found = measured(tmp_path, model_dir, "0.16.0")
    assert found.report is None
    assert found.headline["output_tokens_per_s"] == 16
    assert found.headline["avg_tpot_s"] == pytest.approx(0.005)
    # It is not that release's option, or means something else there.
    assert not {"--backend", "--report_json", "--max_num_tokens"} & set(found.command)


def test_0_16_refuses_the_throughput_of_engines_for_one_sequence(
    standin: pytest.MonkeyPatch, tmp_path: Path, model_dir: Path
) -> None:
    standin.setenv("TRTFORGE_STANDIN_VERSION", "0.16.0")
    engine = write_engine(tmp_path / "one", version="0.16.0", build={"max_batch_size": 1})
    with pytest.raises(BenchUnsuitableError, match="latency"):
        measured(tmp_path, model_dir, "0.16.0", engine)
    assert measured(tmp_path, model_dir, "0.16.0", engine, mode="latency").headline["requests"] == 2


@pytest.mark.usefixtures("standin")
def test_requests_that_do_not_fit_are_refused_beforehand(tmp_path: Path, model_dir: Path) -> None:
    requests = [{"input_ids": [1] * 60, "output_tokens": 5}]
    with pytest.raises(RequestTooLargeError, match=r"60 \+ 5 tokens"):
        measured(tmp_path, model_dir, requests=requests)


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("how", ["file", "auto_map"])
def test_a_models_own_code_is_never_run(tmp_path: Path, model_dir: Path, how: str) -> None:
    if how == "file":
        (model_dir / "tokenization_mine.py").write_text("raise SystemExit")
    else:
        (model_dir / "tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(BenchUnsuitableError, match="would run it"):
        measured(tmp_path, model_dir)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("bench-oom", GpuMemoryError),
        ("bench-rubbish", BenchReportError),
        ("bench-no-report", BenchReportError),
    ],
)
def test_failures_have_names(
    standin: pytest.MonkeyPatch,
    tmp_path: Path,
    model_dir: Path,
    fault: str,
    error: type[Exception],
) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", fault)
    with pytest.raises(error):
        measured(tmp_path, model_dir)
    assert not list((tmp_path / "out").iterdir())


def test_a_benchmark_that_hangs_is_ended(
    standin: pytest.MonkeyPatch, tmp_path: Path, model_dir: Path
) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", "bench-hang")
    with pytest.raises(DriverTimeoutError):
        measured(tmp_path, model_dir, timeout_s=2)


def test_a_report_that_says_nothing_is_no_report() -> None:
    with pytest.raises(ValueError, match="total latency"):
        headline_of_report({"performance": {}})
    with pytest.raises(ValueError, match="total latency"):
        headline_of_log("Traceback")
    few = {"performance": {"total_latency_ms": 10, "request_throughput_req_s": 2}}
    headline = headline_of_report(few)
    assert headline["total_s"] == pytest.approx(0.01)
    assert headline["avg_ttft_s"] is None


def test_0_16s_latency_report_keeps_its_three_throughputs_apart() -> None:
    log = (
        "Request Throughput (req/sec):\t\t  2.0000\n"
        "Total Token Throughput (tokens/sec):\t  30.0000\n"
        "Generation Token Throughput (tokens/sec): 20.0000\n"
        "Total Latency (ms):\t\t  1000.0000\n"
    )
    headline = headline_of_log(log)
    assert headline["total_tokens_per_s"] == 30
    assert headline["output_tokens_per_s_per_user"] == 20
    assert headline["output_tokens_per_s"] is None


def test_our_own_benchmarks_prompts_are_the_dataset() -> None:
    jobs = [{"prompts": [[1, 2], [3, 4]], "max_new_tokens": 7}]
    assert requests_of_jobs(jobs) == [
        {"input_ids": [1, 2], "output_tokens": 7},
        {"input_ids": [3, 4], "output_tokens": 7},
    ]
