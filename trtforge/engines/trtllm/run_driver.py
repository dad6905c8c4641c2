"""Driver: run an engine on a list of jobs. See `trtforge.engines.jobs` for their shape.

Request:  engine_dir, version (the release of this interpreter), api (`LLM` or `ModelRunnerCpp`:
          the release's; several ranks always use ModelRunnerCpp, under mpirun), jobs, logits_dir,
          kv_cache_fraction (of the GPU memory free after loading), teardown_s (how long the
          runtime may take to end itself once everything is measured)
Result:   load_s, outputs (one per job, in order; each has `request_s` besides: seconds to each
          token of each prompt, per repeat), peak_gpu_bytes (or null), warnings

The driver itself stays light. Jobs with logits and jobs that are timed run in a session each
(`run_session`), one after the other: the executor that gives logits streams more slowly.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from trtforge.engines.driver_main import DriverError, Report, drive
from trtforge.engines.trtllm import mpi
from trtforge.engines.trtllm.engine_limits import (
    EngineLimits,
    read_limits,
    require_jobs_fit,
    require_version,
)
from trtforge.engines.trtllm.gpu_query import MemoryWatch, find_gpus
from trtforge.engines.trtllm.run_failures import recognise, unknown

_SESSION = "trtforge.engines.trtllm.run_session"
_LOG_LINES = 4000
# A session that has written its result and outlives its own time for that is ended.
_EXIT_GRACE_S = 30.0


def run(request: dict[str, Any], report: Report) -> dict[str, Any]:
    limits = read_limits(Path(request["engine_dir"]))
    require_version(limits, request["version"])
    require_jobs_fit(limits, request["jobs"])
    gpus = find_gpus()
    if len(gpus.visible) < limits.world_size:
        have = gpus.absence or f"{len(gpus.visible)} can be used here"
        raise DriverError(
            "too-few-gpus",
            f"the engine has {limits.world_size} ranks and needs as many GPUs: {have}",
            "Run it on a machine with enough GPUs; in a container start it with --gpus all",
        )
    jobs: list[dict[str, Any]] = request["jobs"]
    outputs: dict[str, Any] = {}
    load_s, warnings = 0.0, []
    with MemoryWatch([gpu.index for gpu in gpus.visible[: limits.world_size]]) as memory:
        for keep_logits in (True, False):
            group = [job for job in jobs if bool(job.get("logits")) is keep_logits]
            if group:
                result, warning = _session(request, limits, group, keep_logits, report)
                load_s = result["load_s"]
                outputs.update((output["id"], output) for output in result["outputs"])
                warnings += [warning] if warning else []
    return {
        "load_s": load_s,
        "outputs": [outputs[job["id"]] for job in jobs],
        "peak_gpu_bytes": memory.peak_bytes,
        "warnings": warnings,
    }


def _session(
    request: "dict[str, Any]",
    limits: EngineLimits,
    jobs: "list[dict[str, Any]]",
    keep_logits: bool,
    report: Report,
) -> "tuple[dict[str, Any], str]":
    """Its result, and what a person should know of how it ended."""
    name = "checks" if keep_logits else "load"
    request_path, result_path = Path(f"{name}-request.json"), Path(f"{name}-result.json")
    session = {
        "engine_dir": request["engine_dir"],
        "limits": dataclasses.asdict(limits),
        "api": "ModelRunnerCpp" if limits.world_size > 1 else request["api"],
        "keep_logits": keep_logits,
        "kv_cache_fraction": request["kv_cache_fraction"],
        "teardown_s": request["teardown_s"],
        "jobs": jobs,
        "logits_dir": request["logits_dir"],
    }
    request_path.write_text(json.dumps(session))
    result_path.unlink(missing_ok=True)
    report("loading the engine", 0, None)
    command = [sys.executable, "-m", _SESSION, str(request_path), str(result_path)]
    if limits.world_size > 1:
        command = mpi.mpirun_command(limits.world_size, command)
    exit_code, log = _attend(command, result_path, session["teardown_s"], report)
    try:
        result: dict[str, Any] = json.loads(result_path.read_text())
    except (OSError, ValueError):
        raise (recognise(log) or unknown(log, exit_code)) from None
    # The result is written when everything is measured; how teardown goes says nothing about it.
    warning = f"the process ended with exit code {exit_code} after its work" if exit_code else ""
    return result, warning


def _attend(
    command: list[str], result_path: Path, teardown_s: float, report: Report
) -> "tuple[int, list[str]]":
    """Run a session to its end: exit code and log.

    Raises:
        DriverError: the session said what is wrong.
    """
    environment = mpi.clean_environment(os.environ)
    # Models and tokenizers are local, and nothing is to be downloaded while the GPU waits.
    environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUNBUFFERED="1")
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    failures: list[dict[str, str]] = []
    readers = [
        threading.Thread(target=_read_protocol, args=(process.stdout, report, failures)),
        threading.Thread(target=_read_log, args=(process.stderr, log)),
    ]
    for reader in readers:
        reader.daemon = True
        reader.start()
    exit_code = _wait(process, result_path, teardown_s + _EXIT_GRACE_S)
    for reader in readers:
        # A grandchild that lives on keeps the pipe open.
        reader.join(5)
    if failures:
        failure = failures[0]
        raise DriverError(failure["cause"], failure["problem"], failure["remedy"])
    return exit_code, log


def _wait(process: "subprocess.Popen[str]", result_path: Path, exit_s: float) -> int:
    deadline = None
    while True:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            if deadline is None and result_path.exists():
                deadline = time.monotonic() + exit_s
            if deadline is not None and time.monotonic() > deadline:
                process.kill()


def _read_protocol(stream: "IO[str]", report: Report, failures: "list[dict[str, str]]") -> None:
    for line in stream:
        try:
            message = json.loads(line)
        except ValueError:
            print(line, end="", file=sys.stderr)
            continue
        if "progress" in message:
            report(**message["progress"])
        elif "error" in message:
            failures.append(message["error"])


def _read_log(stream: "IO[str]", log: "list[str]") -> None:
    for line in stream:
        sys.stderr.write(line)
        log.append(line.rstrip("\n"))
        del log[:-_LOG_LINES]


if __name__ == "__main__":
    drive(run)
