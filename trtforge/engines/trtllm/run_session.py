"""One process of a run: load the engine once, perform jobs, write what came out, exit.

Started by `trtforge.engines.trtllm.run_driver`, alone or as each rank of an mpirun, with
`request.json result.json`. Rank 0 writes progress as JSON lines to stdout, and the result by
rename. A process of its own because only its end gives the GPU memory back for sure.
"""

import importlib
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError
from trtforge.engines.jobs import perform
from trtforge.engines.trtllm import mpi
from trtforge.engines.trtllm.engine_limits import EngineLimits


def main() -> None:
    request_path, result_path = Path(sys.argv[1]), Path(sys.argv[2])
    protocol = _take_stdout()
    mpi.end_with_parent()

    def send(message: "dict[str, Any]") -> None:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()

    def report(what: str, done: int, total: "int | None", unit: str = "steps") -> None:
        send({"progress": {"what": what, "done": done, "total": total, "unit": unit}})

    try:
        request = json.loads(request_path.read_text())
        session, load_s = _open(request)
        if mpi.rank_of_this_process() == 0:
            result = {"load_s": load_s, **_perform(session, request, report)}
            partial = result_path.with_suffix(".partial")
            partial.write_text(json.dumps(result))
            partial.rename(result_path)
        _close(session, float(request["teardown_s"]))
    except DriverError as error:
        send({"error": {"cause": error.cause, "problem": error.problem, "remedy": error.remedy}})
        _leave()
    except BaseException:
        # The driver reads the log and knows the usual causes.
        traceback.print_exc()
        _leave()


def _open(request: "dict[str, Any]") -> "tuple[Any, float]":
    limits = EngineLimits(**request["limits"])
    arguments = (
        Path(request["engine_dir"]),
        limits,
        bool(request["keep_logits"]),
        float(request["kv_cache_fraction"]),
    )
    # Tens of seconds, and no part of loading an engine.
    importlib.import_module("tensorrt_llm")
    session: Any
    if request["api"] == "LLM":
        from trtforge.engines.trtllm.run_llm import LlmSession

        started = time.perf_counter()
        session = LlmSession(*arguments)
    else:
        from trtforge.engines.trtllm.run_runner_cpp import RunnerSession

        started = time.perf_counter()
        session = RunnerSession(*arguments)
    return session, time.perf_counter() - started


def _perform(session: Any, request: "dict[str, Any]", report: Any) -> "dict[str, Any]":
    requests_s: dict[str, list[Any]] = {job["id"]: [] for job in request["jobs"]}

    def generate(job: "dict[str, Any]", keep_logits: bool) -> Any:
        # Warm-ups of a job with logits keep them too: the session was opened for them.
        answer = session.generate(job, bool(request["keep_logits"]) or keep_logits)
        requests_s[job["id"]].append(answer.request_s)
        return answer

    outputs = perform(request["jobs"], generate, Path(request["logits_dir"]), report)
    for job, output in zip(request["jobs"], outputs, strict=True):
        output["request_s"] = requests_s[job["id"]][job.get("warmups", 0) :]
    return {"outputs": outputs}


def _close(session: Any, teardown_s: float) -> None:
    # Upstream's teardown hangs now and then (MPI_Finalize, workers); the result is out by then.
    watchdog = threading.Timer(teardown_s, os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
    session.close()
    # The timer stays: what runs at exit can hang as well.


def _leave() -> None:
    """End with an error, at once: threads of the runtime may never end, and it is the death of one
    rank that makes mpirun end the others."""
    sys.stderr.flush()
    os._exit(1)


def _take_stdout() -> Any:
    """Keep stdout for the protocol on rank 0; whatever else prints goes to stderr."""
    channel = os.dup(1)
    os.dup2(2, 1)
    if mpi.rank_of_this_process() != 0:
        os.dup2(2, channel)
    return os.fdopen(channel, "w")


if __name__ == "__main__":
    main()
elif __name__ == "__worker__":
    # mpi4py imports the main module of the process that spawned it, under this name, in each
    # worker of the LLM API.
    mpi.end_with_parent()
