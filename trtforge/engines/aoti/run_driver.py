"""Driver: run an aoti engine on a list of jobs. See `trtforge.engines.jobs` for their shape.

Request:  engine_dir, threads, jobs, logits_dir (where logits asked for are written)
Result:   load_s, outputs (one per job)

An engine of several ranks is run by as many processes (`trtforge.engines.aoti.ranks`), each of them
this driver again, with `rank` in its request: all perform the same jobs, and rank 0 answers.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trtforge.engines.aoti.ranks import run_ranks
from trtforge.engines.driver_main import Report, drive
from trtforge.engines.jobs import perform

_MODULE = "trtforge.engines.aoti.run_driver"


def run(request: dict[str, Any], report: Report) -> dict[str, Any]:
    build = _build_config(Path(request["engine_dir"]))
    ranks, place = build.get("tp", 1), request.get("rank")
    if ranks > 1 and place is None:
        result: dict[str, Any] = run_ranks(_MODULE, request, ranks, report)
        return result

    from trtforge.engines.aoti.rank_group import RankGroup
    from trtforge.engines.aoti.runtime import Engine, Sampling

    jobs, threads = request["jobs"], request["threads"]
    started = time.perf_counter()
    group = None
    if place is not None:
        rendezvous = Path(place["rendezvous"])
        group = RankGroup(place["rank"], place["ranks"], rendezvous, build["device"])
        if build["device"] == "cpu":
            threads = max(1, (threads or len(os.sched_getaffinity(0))) // ranks)
        if place["rank"] > 0:
            jobs = [{**job, "logits": False} for job in jobs]
    report("loading the engine", 0, None)
    engine = Engine(Path(request["engine_dir"]), threads, group)
    load_s = time.perf_counter() - started

    def generate(job: dict[str, Any], keep_logits: bool) -> Any:
        return engine.generate(
            job["prompts"],
            job["max_new_tokens"],
            sampling=Sampling(**job.get("sampling", {})),
            stop_ids=job.get("stop_ids", ()),
            keep_logits=keep_logits,
            forced=job.get("forced"),
        )

    outputs = perform(jobs, generate, Path(request["logits_dir"]), report)
    if group:
        group.leave()
    return {"load_s": load_s, "outputs": outputs}


def _build_config(engine_dir: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((engine_dir / "config.json").read_text())["build_config"]
    return config


def _with_a_libstdcxx_that_loads() -> None:
    """Start again with the compiler's libstdc++ preloaded where loading a CUDA package crashes.

    Some PyTorch builds bring a libstdc++ of their own, and `std::regex`, used while a package's
    device is parsed, then crashes across the two. A forked child tries, so that this process sees
    the crash instead of dying of it.
    """
    try:
        request = json.loads(Path(sys.argv[1]).read_text())
        engine_dir = Path(request["engine_dir"])
        build = _build_config(engine_dir)
    except (OSError, ValueError, LookupError):
        return  # the driver will say what is wrong
    # A rank is started by one who tried.
    if build["device"] != "cuda" or "rank" in request:
        return
    if "LD_PRELOAD" in os.environ or shutil.which("g++") is None:
        return
    child = os.fork()
    if child == 0:
        import torch

        torch._C._aoti.AOTIModelPackageLoader(
            str(engine_dir / "rank0.pt2"), build["graphs"][0], True, 1, -1
        )
        os._exit(0)
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        asked = ["g++", "-print-file-name=libstdc++.so.6"]
        library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        print(f"loading crashed; trying again with {library} preloaded", file=sys.stderr)
        arguments = [sys.executable, "-m", _MODULE, *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, "LD_PRELOAD": library})


if __name__ == "__main__":
    _with_a_libstdcxx_that_loads()
    drive(run)
