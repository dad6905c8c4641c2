"""The processes of runs, wherever they hide: found by the run's id in their environment."""

import os
from collections.abc import Iterator

import psutil

from trtforge.stack.worker import RUN_ID


def processes_of(run_id: str) -> list[psutil.Process]:
    """All that came of a run, in whatever group or session, its own process first."""
    return [of for of, environment in _environments() if environment.get(RUN_ID) == run_id]


def engine_of(run_id: str) -> psutil.Process:
    """The process of the run itself, which leads its group."""
    found = [p for p in processes_of(run_id) if "prefect" in " ".join(p.cmdline())]
    [engine] = [p for p in found if os.getpgid(p.pid) == p.pid]
    return engine


def is_compiler(found: psutil.Process) -> bool:
    return _says(found, "tensorrt_llm.commands.build")


def is_driver(found: psutil.Process) -> bool:
    return _says(found, "trtforge.engines.trtllm.build_driver")


def is_sleeper(found: psutil.Process) -> bool:
    return _says(found, "time.sleep(600)")


def _says(found: psutil.Process, words: str) -> bool:
    try:
        return any(words in argument for argument in found.cmdline())
    except psutil.Error:
        return False


def _environments() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    for found in psutil.process_iter():
        try:
            if found.status() != psutil.STATUS_ZOMBIE:
                yield found, found.environ()
        except (psutil.Error, OSError):
            continue
