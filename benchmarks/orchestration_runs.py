"""The runs that `orchestration.py` times, in a process of their own; not to be started by hand.

`python orchestration_runs.py bare` reads the kind of a run per line and prints its times (JSON):

    empty     a flow of as many tasks as a build has, and nothing in them
    equipped  the same, with the artifacts, log lines, parameters, secret and run name of a build
    once      a flow without a task

`python orchestration_runs.py ours SPEC` does the same with the flow build-engine:

    build     everything is found in the store
    empty     the same, the library's calls replaced by what they returned at the first build: what
              is left is what flows and tasks of trtforge add to a stage's own work
"""

import importlib
import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

# The tasks of a build in one process, as the flows call them; and the calls into the library
# that do the work of each.
TASKS = {
    "flows.build_engine": ("plan_build", "pull_model", "convert_model", "move_aliases"),
    "flows.gpu_stage": (
        "compile_checkpoint",
        "benchmark_engine",
        "judge_engine",
        "publish_engine",
    ),
}
WORK = {
    # A client of the storage, once a run: whoever keeps anything in S3 makes one.
    "tasks.workshop": ("open_workshop",),
    "tasks.plan": ("make_plan",),
    "tasks.pull": ("pull",),
    "tasks.convert": ("convert",),
    "tasks.compile": ("compile_engine",),
    "tasks.benchmark": ("benchmark",),
    "tasks.gates": ("judge", "admit"),
    "tasks.publish": ("publish",),
    "tasks.alias": ("published_manifest", "point_aliases"),
    "tasks.card": ("published_manifest",),
    "flows.gpu_stage": ("requested",),
}
COUNT = sum(len(names) for names in TASKS.values())


def main() -> None:
    role = sys.argv[1]
    runs = _bare() if role == "bare" else _ours(Path(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(runs(line.strip())), flush=True)


def _bare() -> Callable[[str], dict[str, Any]]:
    from prefect import flow, get_run_logger, task
    from prefect.artifacts import (
        create_link_artifact,
        create_markdown_artifact,
        create_table_artifact,
    )
    from prefect.blocks.system import Secret
    from prefect.cache_policies import NO_CACHE

    # As cheap as Prefect has them.
    @task(cache_policy=NO_CACHE, persist_result=False)
    def nothing() -> None:
        return None

    rows = [{"Stage": "stage", "Status": "in store", "Detail": "x" * 40}] * 5

    @task(cache_policy=NO_CACHE, persist_result=False)
    def equipped(number: int, spec: dict[str, Any]) -> None:
        del spec
        if number == 0:
            with suppress(ValueError):  # there is none
                Secret.load("hf-token")
        get_run_logger().info("stage: found in the store (%s)", number)
        if number in (0, 4):
            create_table_artifact(table=rows, key=f"table-{number}", description="x")
        if number == 6:
            create_link_artifact(link="s3://bucket/key", link_text="x", key="link")

    @flow(persist_result=False)
    def bare_empty() -> list[float]:
        return [_seconds(nothing) for _ in range(COUNT)]

    @flow(persist_result=False, flow_run_name="{spec[name]}")
    def bare_equipped(spec: dict[str, Any]) -> list[float]:
        times = [_seconds(lambda n=number: equipped(n, spec)) for number in range(COUNT)]
        create_markdown_artifact("x" * 4000, key="card")
        return times

    @flow(persist_result=False)
    def bare_once() -> list[float]:
        return []

    spec = {"name": "x" * 60, "engine": dict.fromkeys("abcdefgh", 96)}
    kinds: dict[str, Callable[[], list[float]]] = {
        "empty": bare_empty,
        "equipped": lambda: bare_equipped(spec),
        "once": bare_once,
    }

    def run(kind: str) -> dict[str, Any]:
        started, cpu_s = time.perf_counter(), time.process_time()
        tasks = kinds[kind]()
        return {
            "run_s": time.perf_counter() - started,
            "tasks_s": sum(tasks),
            "cpu_s": time.process_time() - cpu_s,
        }

    return run


def _ours(spec_file: Path) -> Callable[[str], dict[str, Any]]:
    from trtforge.spec import load_spec

    spec = load_spec(spec_file)
    flow = importlib.import_module("flows.build_engine").build_engine
    spent: list[float] = []
    for module, names in TASKS.items():
        for name in names:
            _replace(module, name, lambda call: _timed(call, spent))
    replay = _Replay()
    for module, names in WORK.items():
        for name in names:
            _replace(module, name, replay.wrap)

    def run(kind: str) -> dict[str, Any]:
        spent.clear()
        replay.begin(replaying=kind == "empty")
        started, cpu_s = time.perf_counter(), time.process_time()
        result = flow(spec)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        assert all(stage["hit"] for stage in result["stages"]), result["stages"]
        assert len(spent) == COUNT, spent
        return {
            "run_s": seconds,
            "tasks_s": sum(spent),
            "cpu_s": cpu_s,
            "work_s": replay.seconds,
        }

    return run


class _Replay:
    """Calls of the library, in their order: timed, and later answered from memory."""

    def __init__(self) -> None:
        self._answers: list[tuple[Any, list[Any]]] = []
        self._replaying = False
        self._next = 0
        self.seconds = 0.0

    def begin(self, *, replaying: bool) -> None:
        self._replaying, self._next, self.seconds = replaying, 0, 0.0
        if not replaying:
            self._answers.clear()

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        from trtforge.progress import announce, listening

        @wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._replaying:
                answer, events = self._answers[self._next]
                self._next += 1
                for event in events:
                    announce(event)
                return answer
            events = []
            started = time.perf_counter()
            with listening(events.append):
                answer = call(*args, **kwargs)
            self.seconds += time.perf_counter() - started
            self._answers.append((answer, events))
            return answer

        return wrapped


def _replace(module: str, name: str, wrap: Callable[[Any], Any]) -> None:
    loaded = importlib.import_module(module)
    setattr(loaded, name, wrap(getattr(loaded, name)))


def _timed(call: Any, spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - started)

    return timed


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    # stdout is for the answers.
    logging.raiseExceptions = False
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # No variable of the environment can say "none". A run ends by waiting for the second that its
    # heartbeat sleeps, which would hide everything.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        main()
