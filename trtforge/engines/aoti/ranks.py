"""The processes of an engine that runs on several ranks: start them, listen, leave none behind.

Standard library only. Each rank is a driver of its own (`trtforge.engines.driver_main`), whose
parent is the driver that was asked. That one computes nothing then: it waits in no collective, so
it sees at once that a rank died, whatever the others still wait for. When it dies itself, the
ranks find their stdin closed and end.
"""

import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError, Report

# What one rank's death costs the others they say soon, or, waiting for it on a GPU, never.
_GRACE_S = 2.0
# They end together; a rank whose libraries cannot take leave is not waited for.
_EXIT_S = 30.0
# All ranks are on this machine: they meet on its loopback interface.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def run_ranks(module: str, request: "dict[str, Any]", ranks: int, report: Report) -> Any:
    """Run the driver `module` once for each rank, and give back rank 0's result.

    To what is asked of each is added `rank`: {rank, ranks, rendezvous}, the latter a file for the
    ranks to meet at. Only rank 0's progress is told.

    Raises:
        DriverError: A rank failed: in its own words, or `rank-killed`, `rank-ended`, `rank-lost`.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-", dir=Path.cwd()) as directory:
        scratch = Path(directory)
        news: queue.Queue[tuple[int, Any]] = queue.Queue()
        processes: list[subprocess.Popen[str]] = []
        try:
            for rank in range(ranks):
                place = {"rank": rank, "ranks": ranks, "rendezvous": str(scratch / "rendezvous")}
                asked = scratch / f"request{rank}.json"
                asked.write_text(json.dumps({**request, "rank": place}))
                processes.append(_start(module, asked, scratch / f"result{rank}.json"))
                threading.Thread(
                    target=_listen, args=(rank, processes[rank], news), daemon=True
                ).start()
            _wait(news, ranks, report)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        return json.loads((scratch / "result0.json").read_text())


def _start(module: str, asked: Path, result: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, str(asked), str(result)],
        env={**os.environ, **_LOOPBACK},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def _listen(
    rank: int, process: "subprocess.Popen[str]", news: "queue.Queue[tuple[int, Any]]"
) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            try:
                news.put((rank, json.loads(line)))
            except ValueError:  # printed by a library, before the driver took stdout for itself
                continue
    news.put((rank, process.wait()))


def _wait(news: "queue.Queue[tuple[int, Any]]", ranks: int, report: Report) -> None:
    """Until all ranks have ended well, or until one has not and the others had time to say so."""
    told: dict[int, dict[str, str]] = {}
    ended: dict[int, int] = {}
    deadline = math.inf
    while len(ended) < ranks:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            rank, what = news.get(timeout=None if left_s == math.inf else left_s)
        except queue.Empty:
            break
        match what:
            case int(code):
                ended[rank] = code
            case {"progress": dict(progress)} if rank == 0:
                report(**progress)
            case {"error": dict(words)}:
                told[rank] = words
        if told or ended:
            patience_s = _GRACE_S if told or any(ended.values()) else _EXIT_S
            deadline = min(deadline, time.monotonic() + patience_s)
    if told or any(ended.values()):
        raise _failure(told, ended, ranks)


def _failure(told: "dict[int, dict[str, str]]", ended: "dict[int, int]", ranks: int) -> DriverError:
    """The failure that the others follow from; both dictionaries are in the order of time."""
    bad = [(rank, code) for rank, code in ended.items() if code]
    # A library may abort() because another rank is gone, but sends itself no other signal.
    struck = [(rank, code) for rank, code in bad if code < 0 and code != -signal.SIGABRT]
    own = {rank: words for rank, words in told.items() if words["cause"] != "rank-lost"}
    speechless = [(rank, code) for rank, code in bad if rank not in told]
    if struck or (speechless and not own):
        return _ended(*(struck or speechless)[0], ranks)
    rank, words = next(iter((own or told).items()))
    everybodys = len(told) == ranks and all(other == words for other in told.values())
    where = "" if everybodys else f"rank {rank} of {ranks}: "
    return DriverError(words["cause"], where + words["problem"], words["remedy"])


def _ended(rank: int, code: int, ranks: int) -> DriverError:
    who = f"rank {rank} of {ranks}"
    if code >= 0:
        return DriverError("rank-ended", f"{who} ended with exit code {code}", "")
    hint = "Most likely the machine ran out of memory: free some, or ask for less"
    return DriverError(
        "rank-killed",
        f"{who} was ended by {signal.Signals(-code).name}",
        hint if code == -signal.SIGKILL else "",
    )
