"""Driver: run `trtllm-build` and watch it. Standard library only.

Request:  directory (where it runs; it holds `checkpoint`, and `model.cache` to start from one),
          arguments (what follows `trtllm-build`), world_size, at_once (ranks built at once)
Result:   exit_code (negative: ended by that signal), phases [{name, rank, seconds, said_s}],
          memory {peak_rss_bytes, peak_gpu_bytes, said_peak_bytes},
          timing_cache {unreadable, refused, complaint}

An exit code of `trtllm-build` is part of the result: what it means is the parent's to say, who has
the log. What it left is looked at there too.
"""

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import IO, Any

from trtforge.engines.driver_main import DriverError, Report, drive
from trtforge.engines.trtllm.build_log import PHASES, BuildLog
from trtforge.engines.trtllm.gpu_query import MemoryWatch, find_gpus
from trtforge.engines.trtllm.memory_meter import MemoryMeter

_ALL_RANKS = "trtforge.engines.trtllm.all_ranks"
_COMBINE = "trtforge.engines.trtllm.combine_caches"
_COMBINE_TIMEOUT_S = 600.0
_LAST_LINES_S = 5.0
_LINE_BYTES = 1 << 16
# MPI must not take the build for a part of the job that the worker runs in, and nothing that
# happens to be set here may decide the engine.
_LEFT_OUT = ("OMPI_", "PMIX_", "PMI_", "SLURM_", "BUILDER_FORCE_NUM_PROFILES")


def build(request: "dict[str, Any]", report: Report) -> "dict[str, Any]":
    directory = Path(request["directory"])
    world_size = request["world_size"]
    # Upstream writes rank 0's timing cache only.
    command = [sys.executable, "-m", _ALL_RANKS] if world_size > 1 else [find_trtllm_build()]
    command += request["arguments"]
    print("trtforge: running", *command, file=sys.stderr, flush=True)
    report("loading the checkpoint", 0, len(PHASES) * world_size)
    gpus = [found.index for found in find_gpus().visible]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    log = BuildLog(started, request["at_once"])
    reader = threading.Thread(
        target=_read, args=(process.stdout, log, report, len(PHASES) * world_size), daemon=True
    )
    with MemoryMeter(process.pid) as host, MemoryWatch(gpus) as gpu:
        reader.start()
        exit_code = process.wait()
    # A process it left behind may hold the pipe open for ever.
    reader.join(_LAST_LINES_S)
    complaint = combine_caches(directory, world_size) if exit_code == 0 and world_size > 1 else ""
    return {
        "exit_code": exit_code,
        "phases": [phase.to_json() for phase in log.phases],
        "memory": {
            # The kernel knows the largest of the processes, also of a build between two samples.
            "peak_rss_bytes": max(host.peak_rss_bytes, _largest_child_bytes()),
            "peak_gpu_bytes": gpu.peak_bytes,
            "said_peak_bytes": log.said_peak_bytes,
        },
        "timing_cache": {
            "unreadable": log.cache_unreadable,
            "refused": log.cache_refused,
            "complaint": complaint,
        },
    }


def find_trtllm_build() -> str:
    """The `trtllm-build` that belongs to this interpreter; else the one on PATH.

    Raises:
        DriverError: `no-trtllm-build`.
    """
    places = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    found = shutil.which("trtllm-build", path=os.pathsep.join(places))
    found = found or shutil.which("trtllm-build")
    if found is None:
        raise DriverError(
            "no-trtllm-build",
            f"there is no trtllm-build beside {sys.executable}, nor on PATH",
            "Point TRTFORGE_TRTLLM_PYTHON at an environment with TensorRT-LLM 1.2.1 or older "
            "(1.3.0rc21 removed trtllm-build); `trtforge doctor` looks for one",
        )
    return found


def combine_caches(directory: Path, world_size: int) -> str:
    """Make one timing cache of those of all ranks; what could not be done, for a person."""
    # A process of its own: TensorRT may end it with a signal, and the engine is made already.
    others = [f"model.cache.rank{rank}" for rank in range(1, world_size)]
    missing = [name for name in others if not (directory / name).is_file()]
    if len(missing) == len(others):
        return "only rank 0's tactics are kept in model.cache: the other ranks wrote none"
    present = [name for name in others if name not in missing]
    try:
        done = subprocess.run(
            [sys.executable, "-m", _COMBINE, "model.cache", *present],
            cwd=directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=_COMBINE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "only rank 0's tactics are kept in model.cache: combining them took too long"
    if done.returncode != 0:
        return "only rank 0's tactics are kept in model.cache: TensorRT did not combine them"
    return f"model.cache lacks the tactics of {', '.join(missing)}" if missing else ""


def _largest_child_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _environment() -> "dict[str, str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)}
    # Nothing may be downloaded here, and lines are read while it works.
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def _read(stream: "IO[bytes]", log: BuildLog, report: Report, total: int) -> None:
    while True:
        line = stream.readline(_LINE_BYTES)
        if not line:
            return
        os.write(2, line if line.endswith(b"\n") else line + b"\n")
        doing = log.feed(line.decode(errors="replace"), time.monotonic())
        if doing:
            report(doing, min(len(log.phases), total), total)


if __name__ == "__main__":
    drive(build)
