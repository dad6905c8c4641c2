"""Driver: the release's own `trtllm-bench` on an engine, for numbers others can compare with.

Request:  version, mode (`throughput` or `latency`), engine_dir, model_dir (Hugging Face files: it
          wants config.json and the tokenizer, though it gets token ids), model_name, requests
          [{input_ids, output_tokens}], concurrency (0: no limit), warmup, kv_cache_fraction,
          report_path (where its JSON report is to be kept; 1.x only)
Result:   headline (see `bench_report`), command, report (the file's name, or null), log_tail

Options read in upstream's `commands/bench.py` and `bench/benchmark/{throughput,low_latency}.py` of
0.16.0.dev2024121000 and of 1.x [not run].
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError, Report, drive
from trtforge.engines.trtllm import mpi
from trtforge.engines.trtllm.bench_report import headline_of_log, headline_of_report
from trtforge.engines.trtllm.engine_limits import (
    EngineLimits,
    read_limits,
    require_jobs_fit,
    require_version,
)
from trtforge.engines.trtllm.run_failures import recognise, unknown

_TAIL_LINES = 40


def bench(request: dict[str, Any], report: Report) -> dict[str, Any]:
    limits = read_limits(Path(request["engine_dir"]))
    require_version(limits, request["version"])
    _require_requests_fit(limits, request)
    _refuse_remote_code(Path(request["model_dir"]))
    dataset, partial = Path("dataset.jsonl").absolute(), Path("report.json").absolute()
    write_dataset(dataset, request["requests"])
    command = bench_command(request, limits, dataset, partial)
    report(f"trtllm-bench {request['mode']}", 0, None)
    exit_code, log = _attend(command)
    if exit_code != 0:
        raise recognise(log) or unknown(log, exit_code)
    try:
        if _writes_json(request["version"]):
            headline = headline_of_report(json.loads(partial.read_text()))
        else:
            headline = headline_of_log("\n".join(log))
    except (OSError, ValueError) as error:
        raise DriverError(
            "bad-bench-report",
            f"trtllm-bench ended with exit code 0 but left no report that can be read ({error})",
            "See the log: a benchmark that was interrupted ends in this way",
        ) from error
    kept = None
    if _writes_json(request["version"]):
        target = Path(request["report_path"])
        shutil.move(str(partial), f"{target}.partial")
        Path(f"{target}.partial").replace(target)
        kept = target.name
    return {
        "headline": headline,
        "command": command,
        "report": kept,
        "log_tail": log[-_TAIL_LINES:],
    }


def bench_command(
    request: dict[str, Any], limits: EngineLimits, dataset: Path, report_path: Path
) -> list[str]:
    """The command line, with what the release's parser knows.

    Raises:
        DriverError: `no-trtllm-bench`, `bench-batch-of-one`.
    """
    beside = Path(sys.executable).parent / "trtllm-bench"
    program = str(beside) if os.access(beside, os.X_OK) else shutil.which("trtllm-bench")
    if program is None:
        raise DriverError(
            "no-trtllm-bench",
            f"trtllm-bench is neither beside {sys.executable} nor on PATH",
            "Install the wheel of TensorRT-LLM again, with its console scripts",
        )
    command = [program, "--model", request["model_name"], "--model_path", request["model_dir"]]
    # The default is /tmp, which several runs would share.
    command += ["--workspace", str(Path("workspace").absolute()), request["mode"]]
    command += ["--engine_dir", request["engine_dir"], "--dataset", str(dataset)]
    command += ["--kv_cache_free_gpu_mem_fraction", str(request["kv_cache_fraction"])]
    throughput = request["mode"] == "throughput"
    if _writes_json(request["version"]):
        # The default backend of 1.x is PyTorch, which refuses or ignores an engine directory.
        command += ["--backend", "tensorrt", "--report_json", str(report_path)]
        command += ["--warmup", str(request["warmup"])]
        command += ["--concurrency", str(request["concurrency"] or -1)]
    elif throughput and limits.max_batch_size == 1:
        raise DriverError(
            "bench-batch-of-one",
            f"trtllm-bench {request['version']} measures throughput only with engines of more "
            "than one sequence",
            "Use the mode latency, or build with engine.max_batch_size of 2 or more",
        )
    elif not throughput:
        command += ["--warmup", str(request["warmup"])]
    # `latency` always streams. `--max_num_tokens` is left out: 0.16 takes the batch size for it.
    return [*command, "--streaming"] if throughput else command


def write_dataset(path: Path, requests: "list[dict[str, Any]]") -> None:
    """One request a line; ids instead of text keep the tokenizer out of the measurement."""
    with path.open("w", encoding="utf-8") as lines:
        for number, request in enumerate(requests):
            line = {
                "task_id": number,
                "input_ids": request["input_ids"],
                "output_tokens": request["output_tokens"],
            }
            lines.write(json.dumps(line) + "\n")


def _writes_json(version: str) -> bool:
    return not version.startswith("0.")


def _require_requests_fit(limits: EngineLimits, request: "dict[str, Any]") -> None:
    jobs = [
        {
            "id": f"request {number}",
            "prompts": [item["input_ids"]],
            "max_new_tokens": item["output_tokens"],
        }
        for number, item in enumerate(request["requests"])
    ]
    require_jobs_fit(limits, jobs)


def _refuse_remote_code(model_dir: Path) -> None:
    """`initialize_tokenizer` of trtllm-bench trusts remote code: there must be none."""
    code = sorted(path.name for path in model_dir.glob("*.py"))
    for name in ("config.json", "tokenizer_config.json"):
        path = model_dir / name
        if path.is_file() and '"auto_map"' in path.read_text(encoding="utf-8", errors="replace"):
            code.append(f"auto_map in {name}")
    if code:
        raise DriverError(
            "remote-code",
            f"the model brings Python code ({', '.join(code)}), and trtllm-bench would run it",
            "Leave trtllm-bench out for this model; trtforge's own benchmark runs none of it",
        )


def _attend(command: "list[str]") -> "tuple[int, list[str]]":
    environment = mpi.clean_environment(os.environ)
    environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUNBUFFERED="1")
    log: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
            log.append(line.rstrip("\n"))
    return process.returncode, log


if __name__ == "__main__":
    drive(bench)
