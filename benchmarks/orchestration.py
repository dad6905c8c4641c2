"""What does trtforge add to Prefect, and does it carry two hundred builds?

Starts the embedded stack (SeaweedFS, PostgreSQL, a Prefect server with its login) on free ports,
leaves in the store what builds of tiny models leave there, and measures, in one run:

**Overhead.** Two processes run flows in turn, one after the other: `build-engine` of trtforge, and
a flow of bare Prefect with as many tasks. The work of the stages is left out on both sides: bare
tasks are empty, and trtforge's calls of its library return at once what they returned before.
What is left of a build is all that flows and tasks of trtforge add: workshops, log lines,
artifacts, events, progress. Heartbeats are off on both sides, as they make a run end up to a
second late, which would hide what is measured. Medians of

* `stage_overhead_over_bare`: time per task, trtforge over a bare flow that writes the same
  artifacts and log lines, and has a run name, with Prefect's own calls;
* `run_overhead_over_bare`: the same of a whole run; `run_cpu_over_bare`: its CPU time in the
  process of the run, which says more than wall time on a machine that others use too;
* `…_over_empty`: the same over a bare flow whose tasks do nothing at all.

**A crowd.** Builds of as many models, all stages of which are in the store, are ordered at the API
at once and taken by two process workers of the pool `cpu`. None may be lost (end in any other state
than Completed), the database must not be locked, memory must stay where it is.

Needs PyTorch, as the toolchain is looked at for real: `python benchmarks/orchestration.py`.
The last line of the output is one JSON object.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
import psutil
import yaml
from forge import PARTS, prefect_client_environment, prefect_http
from models import write_tiny_model
from orchestration_runs import COUNT
from prebuilt import prebuild
from pydantic import SecretStr

from trtforge.settings import Settings
from trtforge.spec import BuildSpec
from trtforge.stack import StackInfo, StackPorts, down, service, services, up
from trtforge.stack import state as stack_state
from trtforge.stack.deploy import deploy
from trtforge.stack.worker import CpuWorker, WorkerLogin
from trtforge.stages.compile import probe_toolchain
from trtforge.stages.workshop import open_workshop

RUNS = Path(__file__).with_name("orchestration_runs.py")
TROUBLE = re.compile(
    r"database is locked|OperationalError|QueuePool limit|TooManyConnections|Traceback|"
    r"Internal Server Error|Exception in ASGI"
)
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
STUCK_S = 300.0
SAMPLE_EVERY_S = 5.0


class FirstWorker(CpuWorker):
    """As the stack's own, with the limit of this benchmark."""

    runs_at_once = 2


class SecondWorker(FirstWorker):
    """Another one of the same pool, on the same machine."""

    name = "second CPU worker"
    slug = "worker-cpu-2"

    @property
    def worker_name(self) -> str:
        return f"{super().worker_name}-2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="runs of each kind; 0: no overhead")
    parser.add_argument("--builds", type=int, default=200, help="builds of the crowd; 0: no crowd")
    parser.add_argument("--limit", type=int, default=2, help="runs at once per worker")
    args = parser.parse_args()
    FirstWorker.runs_at_once = args.limit
    # Another storage must not be filled with this.
    for name in [n for n in os.environ if n.startswith("TRTFORGE_") and "PYTHON" not in n]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="trtforge-orchestration-"))
    home.chmod(0o711)  # PostgreSQL runs as somebody else, should this be root
    result: dict[str, Any] = {"cores": os.cpu_count()}
    try:
        info = up(home, StackPorts.free(), print, workers=False)
        specs = prebuilt(home, max(args.builds, 1))
        if args.rounds:
            result |= overhead(info, specs[0], args.rounds)
        if args.builds:
            result |= crowd(info, specs)
    finally:
        for worker in workers(home):
            worker.end_runs()
            service.stop(worker)
        down(home)
        shutil.rmtree(home, ignore_errors=True)
    print(json.dumps(result))


def prebuilt(home: Path, count: int) -> list[dict[str, Any]]:
    """Specs of tiny models, of each of which the store has everything."""
    started = time.monotonic()
    os.environ["TRTFORGE_HOME"] = str(home)
    shop = open_workshop(settings_of(home))
    shop.work_root.mkdir(parents=True, exist_ok=True)
    specs = []
    toolchain = None
    for number in range(count):
        model = write_tiny_model(home / "models" / f"tiny-{number}", seed=number)
        data = {"model": {"source": str(model)}, **PARTS}
        spec = BuildSpec.model_validate(data)
        toolchain = toolchain or probe_toolchain(shop, spec)
        prebuild(shop, spec, toolchain)
        specs.append(data)
    print(f"{count} models and their engines in the store: {time.monotonic() - started:.0f} s")
    return specs


def settings_of(home: Path) -> Settings:
    state = stack_state.read(home)
    assert state is not None
    return Settings(
        home=home,
        s3_endpoint_url=state.s3.endpoint_url,
        s3_bucket=state.s3.bucket,
        s3_region=state.s3.region,
        s3_access_key_id=SecretStr(state.s3.access_key_id),
        s3_secret_access_key=SecretStr(state.s3.secret_access_key),
    )


# Overhead


class Runner:
    """A process that runs flows on demand and tells how long they took."""

    def __init__(self, info: StackInfo, *arguments: str, bare: bool) -> None:
        environment = prefect_client_environment(info)
        # The server's address and login, not what trtforge sets beside them.
        ours = ("PREFECT_LOGGING_", "PREFECT_RESULTS_", "PREFECT_CLIENT_")
        if bare:
            environment = {k: v for k, v in environment.items() if not k.startswith(ours)}
        Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
        self._log = (info.home / "logs" / f"{'bare' if bare else 'ours'}.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(RUNS), *arguments],
            env=environment,
            cwd=info.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._answer() == "ready"

    def run(self, kind: str) -> dict[str, float]:
        assert self._process.stdin is not None
        print(kind, file=self._process.stdin, flush=True)
        found: dict[str, float] = json.loads(self._answer())
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            log = Path(self._log.name).read_text()[-4000:]
            raise SystemExit(f"a runner ended; its log ends with\n{log}")
        return line


def overhead(info: StackInfo, spec: dict[str, Any], rounds: int) -> dict[str, Any]:
    spec_file = info.home / "spec.yaml"
    spec_file.write_text(yaml.safe_dump(spec))
    bare = Runner(info, "bare", bare=True)
    ours = Runner(info, "ours", str(spec_file), bare=False)
    kinds = [
        ("bare, empty", bare, "empty"),
        ("bare, equipped", bare, "equipped"),
        ("bare, no task", bare, "once"),
        ("trtforge, found", ours, "build"),
        ("trtforge, empty", ours, "empty"),
    ]
    times: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in kinds}
    try:
        for number in range(rounds + 1):
            for name, runner, kind in kinds:
                found = runner.run(kind)
                if number:  # the first of each imports and connects
                    times[name].append(found)
    finally:
        bare.close()
        ours.close()

    def median(name: str, what: str) -> float:
        return statistics.median(found[what] for found in times[name])

    print(f"medians of {rounds}, {COUNT} tasks a run   run ms   task ms    CPU ms")
    for name in times:
        run_ms, tasks_ms, cpu_ms = (1e3 * median(name, w) for w in ("run_s", "tasks_s", "cpu_s"))
        print(f"{name:34} {run_ms:7.0f} {tasks_ms / COUNT:9.1f} {cpu_ms:9.0f}")
    work_ms = 1e3 * median("trtforge, found", "work_s")
    print(f"of a build that finds everything, {work_ms:.0f} ms is the work of its stages")

    def ratio(what: str, over: str) -> float:
        return round(median("trtforge, empty", what) / median(over, what), 3)

    return {
        "rounds": rounds,
        "stage_overhead_over_bare": ratio("tasks_s", "bare, equipped"),
        "run_overhead_over_bare": ratio("run_s", "bare, equipped"),
        "run_cpu_over_bare": ratio("cpu_s", "bare, equipped"),
        "stage_overhead_over_empty": ratio("tasks_s", "bare, empty"),
        "run_overhead_over_empty": ratio("run_s", "bare, empty"),
        "build_found_s": round(median("trtforge, found", "run_s"), 3),
        "bare_empty_s": round(median("bare, empty", "run_s"), 3),
    }


# A crowd


@dataclass
class Memory:
    """RSS of services and runs, in MB, sampled while the crowd works."""

    samples: list[dict[str, float]] = field(default_factory=list)
    largest_run_mb: float = 0.0

    def look(self, home: Path, crew: list[FirstWorker]) -> None:
        found = {s.slug: _rss_mb(s.find()) for s in (*services(home)[:3], *crew)}
        self.samples.append(found)
        for worker in crew:
            leader = worker.find()
            with_children = leader.children(recursive=True) if leader else []
            self.largest_run_mb = max(self.largest_run_mb, *map(_rss_mb, with_children), 0.0)

    @contextmanager
    def watched(self, home: Path, crew: list[FirstWorker]) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SAMPLE_EVERY_S):
                self.look(home, crew)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def told(self) -> dict[str, dict[str, int]]:
        """Start, peak and end of each."""
        first, last = self.samples[0], self.samples[-1]
        return {
            slug: {
                "start": round(first[slug]),
                "peak": round(max(sample[slug] for sample in self.samples)),
                "end": round(last[slug]),
            }
            for slug in first
        }


def crowd(info: StackInfo, specs: list[dict[str, Any]]) -> dict[str, Any]:
    crew = workers(info.home)
    deploy(info.home, login_of(info.home), print)
    for worker in crew:
        service.ensure_running(worker, print)
    http, memory = prefect_http(info), Memory()
    deployment = http.get("deployments/name/build-engine/cpu").raise_for_status().json()["id"]
    memory.look(info.home, crew)
    started = time.monotonic()
    ids = []
    for spec in specs:
        body = {"parameters": {"spec": spec}}
        answer = http.post(f"deployments/{deployment}/create_flow_run", json=body)
        ids.append(str(answer.raise_for_status().json()["id"]))
    with memory.watched(info.home, crew):
        states = until_ended(http, ids)
    seconds = time.monotonic() - started
    memory.look(info.home, crew)
    completed = sum(state == "COMPLETED" for state in states.values())
    trouble = Counter(
        found
        for log in (info.home / "logs").glob("*.log")
        for found in TROUBLE.findall(log.read_text(errors="replace"))
    )
    print(
        f"{completed} of {len(ids)} builds completed in {seconds:.0f} s: {Counter(states.values())}"
    )
    print(f"trouble in the logs: {dict(trouble) or 'none'}; RSS in MB: {memory.told()}")
    return {
        "builds": len(ids),
        "lost_runs": len(ids) - completed,
        "runs_at_once": sum(worker.runs_at_once for worker in crew),
        "crowd_s": round(seconds),
        "builds_per_hour": round(3600 * completed / seconds),
        "log_trouble": dict(trouble),
        "rss_mb": memory.told(),
        "largest_run_rss_mb": round(memory.largest_run_mb),
    }


def until_ended(http: httpx.Client, ids: list[str]) -> dict[str, str]:
    """How each run ended; those that did not are told as they are after `STUCK_S` of standstill."""
    states: dict[str, str] = {}
    moved, shown = time.monotonic(), time.monotonic()
    while True:
        now = {run_id: state for chunk in _chunks(ids) for run_id, state in _states(http, chunk)}
        if now != states:
            states, moved = now, time.monotonic()
        ended = sum(state in ENDED for state in states.values())
        if time.monotonic() - shown > 60:
            print(f"  {ended} of {len(ids)} have ended", flush=True)
            shown = time.monotonic()
        if ended == len(ids) or time.monotonic() - moved > STUCK_S:
            return states
        time.sleep(2)


def _states(http: httpx.Client, ids: list[str]) -> Iterator[tuple[str, str]]:
    answer = http.post("flow_runs/filter", json={"flow_runs": {"id": {"any_": ids}}})
    for run in answer.raise_for_status().json():
        yield run["id"], run["state_type"]


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for first in range(0, len(ids), 100):
        yield ids[first : first + 100]


def _rss_mb(process: psutil.Process | None) -> float:
    try:
        return process.memory_info().rss / 1e6 if process else 0.0
    except psutil.Error:
        return 0.0


def workers(home: Path) -> list[FirstWorker]:
    state = stack_state.read(home)
    if state is None:
        return []
    return [FirstWorker(home, login_of(home)), SecondWorker(home, login_of(home))]


def login_of(home: Path) -> WorkerLogin:
    state = stack_state.read(home)
    assert state is not None
    return WorkerLogin(state.prefect_api_url, state.prefect_auth or ":")


if __name__ == "__main__":
    main()
