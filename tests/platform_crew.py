"""A platform to be killed piece by piece: a stack, its two workers, and the runs they work on.

The GPU worker compiles with the stand-in for TensorRT-LLM (tests/standin), which hangs, resists and
dies on demand: what its engines are is of no interest here. Workers, runs and compilers are real
processes, and whatever a row of the crash matrix does to them is done by a signal or by the API.
Started by tests/platform_start.py.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from forge import PROMPT, Forge, prefect_http
from platform_processes import engine_of, is_compiler, is_sleeper, processes_of

from trtforge.stack import process, service
from trtforge.stack import services as services_of
from trtforge.stack import state as stack_state
from trtforge.stack.lost_runs import put_down_lost_runs
from trtforge.stack.prefect_api import PrefectApi
from trtforge.stack.service import Service
from trtforge.stack.worker import StandInGpuWorker, Worker
from trtforge.store.verify import verify_store

POOL = StandInGpuWorker.pool
# A compiler that does all it can to stay: it ignores SIGTERM, and starts processes in other groups
# and sessions, and a daemon.
STUBBORN = "wait,ignore-sigterm,grandchildren"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_POLL_S = 0.2
T = TypeVar("T")


@dataclass
class Crew:
    """Everything of one platform, and what can be done to it."""

    forge: Forge
    fault_file: Path
    cpu: Worker
    gpu: Worker
    _http: httpx.Client | None = field(default=None, repr=False)

    # What people do

    def order(self, spec: dict[str, Any]) -> str:
        """Ask for a build, as the UI's form does; the id of the run."""
        deployment = self.ask("GET", "deployments/name/build-engine/cpu")
        body = {"parameters": {"spec": spec, "gpu_pool": POOL}}
        return str(self.ask("POST", f"deployments/{deployment['id']}/create_flow_run", body)["id"])

    def limit_gpu_runs(self, count: int | None) -> None:
        """Give gpu-stage a limit of runs at once, whose slot could be leaked.

        It has none as deployed: Prefect renews the lease of such a slot every 225 s for 300 s, and
        ends the run when it is lost, so that an outage of more than 75 s can end a healthy run.
        """
        found = self.ask("GET", f"deployments/name/gpu-stage/{POOL}")
        self.ask("PATCH", f"deployments/{found['id']}", {"concurrency_limit": count})

    def cancel(self, run_id: str) -> None:
        self._set_state(run_id, "CANCELLING", "Cancelling")

    def retry(self, run_id: str) -> None:
        self._set_state(run_id, "SCHEDULED", "AwaitingRetry")

    def put_down_as_crashed(self, run_id: str) -> None:
        """What the automation that ends zombies does, when they have been silent long enough."""
        self._set_state(run_id, "CRASHED", "Crashed")

    def _set_state(self, run_id: str, kind: str, name: str) -> None:
        body = {"state": {"type": kind, "name": name}, "force": kind == "CRASHED"}
        answer = self.ask("POST", f"flow_runs/{run_id}/set_state", body)
        assert answer["status"] == "ACCEPT", answer

    # What is seen

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The API's answer; of a server that was just restarted, too."""
        if self._http is None:
            self._http = prefect_http(self.forge.stack)
        answer = self._http.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"flow_runs/{run_id}")
        return found

    def gpu_runs(self, build_id: str) -> list[dict[str, Any]]:
        """The GPU runs that a build has asked for, the first one first."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [build_id]}}}
        found: list[dict[str, Any]] = self.ask("POST", "flow_runs/filter", body)
        return sorted(found, key=lambda run: str(run["created"]))

    def why(self, run_id: str) -> str:
        """What the state of a run says."""
        return str(self.run(run_id)["state"]["message"])

    def messages(self, run_id: str) -> list[str]:
        """The log of a run."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.ask("POST", "logs/filter", body)]

    def artifacts(self, run_id: str) -> dict[str, str]:
        """What a run shows in the Prefect UI, by key."""
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return {found["key"]: found["data"] for found in self.ask("POST", "artifacts/filter", body)}

    def tries(self, run_id: str) -> dict[str, int]:
        """How often each task of a run that has ended was begun, by the task's name."""

        def counted() -> dict[str, int] | None:
            body = {"task_runs": {"flow_run_id": {"any_": [run_id]}}}
            found = self.ask("POST", "task_runs/filter", body)
            # The server hears of the end of a task a little later than of that of its run.
            over = found and all(task["state_type"] in ENDED for task in found)
            return {t["name"].rpartition("-")[0]: t["run_count"] for t in found} if over else None

        return self.until(f"end of the tasks of run {run_id}", counted, 30)

    def slots(self) -> dict[str, int]:
        """Every limit of the server, the cards' among them, with how much of it is taken."""
        found = self.ask("POST", "v2/concurrency_limits/filter", {})
        return {limit["name"]: limit["active_slots"] for limit in found}

    def cards(self) -> list[int]:
        """How much of each GPU card is taken."""
        return [count for name, count in self.slots().items() if name.startswith("gpu:")]

    def found_in_the_store(self, run_id: str) -> set[str]:
        """Stages that a run did not have to make."""
        return self._stages(run_id, ": found in the store")

    def made(self, run_id: str) -> set[str]:
        """Stages that a run made."""
        return self._stages(run_id, ": done in")

    def _stages(self, run_id: str, words: str) -> set[str]:
        told = [m.partition(words) for m in self.messages(run_id)]
        return {stage for stage, found, _ in told if found and stage != "gpu"}

    def waits_for(self, build_id: str, pool: str) -> bool:
        """Whether the process of a build that was begun again waits for its GPU run."""
        said = self.messages(build_id)
        begun = [n for n, m in enumerate(said) if m.startswith("Beginning flow run")]
        return len(begun) > 1 and any(f"in pool {pool}" in m for m in said[begun[-1] :])

    # Waiting

    def until(self, what: str, look: Callable[[], T | None], patience_s: float) -> T:
        """What `look` finds, as soon as it finds something."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                found = look()
            except httpx.TransportError as error:
                found, problem = None, f" ({error})"
            else:
                problem = ""
            if found:
                return found
            assert time.monotonic() < deadline, f"no {what} after {patience_s:.0f} s{problem}"
            time.sleep(_POLL_S)

    def until_ended(self, run_id: str, patience_s: float = 240) -> str:
        """How a run ended."""

        def ended() -> str | None:
            kind = self.run(run_id)["state_type"]
            return str(kind) if kind in ENDED else None

        try:
            return self.until(f"end of run {run_id}", ended, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story(run_id)}") from None

    def until_compiling(self, build_id: str, attempt: int = 1, patience_s: float = 200) -> str:
        """Wait for the compiler of a build to run, and all it starts; the id of the GPU run."""
        stubborn = "grandchildren" in self.fault_file.read_text()

        def compiling() -> str | None:
            state = self.run(build_id)["state_type"]
            assert state not in ENDED, f"the build is {state}\n{self.story(build_id)}"
            runs = self.gpu_runs(build_id)
            if len(runs) < attempt:
                return None
            run_id = str(runs[attempt - 1]["id"])
            compilers = [p for p in self.processes(run_id) if is_compiler(p)]
            sleepers = [p for p in self.processes(run_id) if is_sleeper(p)]
            return run_id if compilers and (len(sleepers) >= 4 or not stubborn) else None

        try:
            return self.until("compiler", compiling, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story(build_id)}") from None

    def story(self, run_id: str) -> str:
        """What is known of a build, for the reader of a failed test."""
        lines: list[str] = []
        for run in (self.run(run_id), *self.gpu_runs(run_id)):
            lines.append(f"--- {run['name']} {run['id']}: {run['state']}")
            lines += self.messages(run["id"])
        return "\n".join(lines)

    # Processes

    def processes(self, run_id: str) -> list[psutil.Process]:
        """All that came of a run, in whatever group or session, its own process first."""
        return processes_of(run_id)

    def engine(self, run_id: str) -> psutil.Process:
        """The process of the run itself, which leads its group."""
        return engine_of(run_id)

    def service(self, slug: str) -> Service:
        [found] = [s for s in services_of(self.forge.home) if s.slug == slug]
        return found

    def kill(self, slug: str) -> None:
        """kill -9 of a service: its process, and of PostgreSQL and SeaweedFS all of them."""
        leader = self.service(slug).find()
        assert leader is not None
        members = [leader, *(leader.children(recursive=True) if slug != "prefect" else ())]
        process.kill(members)

    def kill_worker(self, worker: Worker, by: signal.Signals = signal.SIGKILL) -> None:
        leader = worker.find()
        assert leader is not None
        leader.send_signal(by)
        assert process.wait_gone([leader], 60), f"{worker.name} did not end on {by.name}"

    def up(self) -> None:
        """Start what does not run."""
        for found in services_of(self.forge.home)[:3]:
            service.ensure_running(found, lambda _: None)
        for worker in (self.cpu, self.gpu):
            service.ensure_running(worker, lambda _: None)

    def look_for_lost_runs(self) -> None:
        """What `trtforge up` does before it starts the workers."""
        state = stack_state.read(self.forge.home)
        assert state is not None
        api = PrefectApi(state.prefect_api_url, str(state.prefect_auth))
        put_down_lost_runs(api, (self.cpu, self.gpu), lambda _: None)

    def fault(self, words: str) -> None:
        """What the next compilers do, and, for `wait`, those that run."""
        self.fault_file.write_text(words)

    @contextmanager
    def impatient_automations(self, within_s: dict[str, int]) -> Iterator[None]:
        """Copies of deployed automations, with other times, and heartbeats to match."""
        found = {a["name"]: a for a in self.ask("POST", "automations/filter", {})}
        made = []
        for name, seconds in within_s.items():
            original = found[f"trtforge: {name}"]
            copy = {k: original[k] for k in ("description", "trigger", "actions")}
            trigger = {**copy["trigger"], "within": seconds}
            trigger.pop("id", None)
            body = {**copy, "name": f"impatient {name}", "enabled": True, "trigger": trigger}
            made.append(self.ask("POST", "automations/", body)["id"])
        try:
            yield
        finally:
            for automation in made:
                self.ask("DELETE", f"automations/{automation}")

    # What everybody wants, whatever happened

    def assert_nothing_is_left(self, *run_ids: str, patience_s: float = 40) -> None:
        """No process of these runs, no slot taken, and a store without a flaw."""
        deadline = time.monotonic() + patience_s
        while True:
            left = [f"{p.pid} {p.name()}" for run in run_ids for p in self.processes(run)]
            taken = {name: count for name, count in self.slots().items() if count}
            if not left and not taken:
                break
            assert time.monotonic() < deadline, f"left: {left}; slots taken: {taken}"
            time.sleep(_POLL_S)
        self.assert_the_store_is_whole()

    def assert_the_store_is_whole(self) -> None:
        """Every record can be read, every byte it names is there, every alias leads somewhere."""
        store = self.forge.store
        assert verify_store(store).damage == ()
        for _, alias in store.list_aliases():
            assert store.get_manifest(alias.engine_id)


def standin_spec(model: Path, **engine: Any) -> dict[str, Any]:
    """A spec that the stand-in compiles and answers in no time."""
    return {
        "model": {"source": str(model)},
        "engine": {
            "backend": "trtllm",
            "max_batch_size": 1,
            "max_input_len": 48,
            "max_seq_len": 96,
            "max_num_tokens": 96,
            **engine,
        },
        "benchmark": {"workload": {"input_tokens": 8, "output_tokens": 4}, "repeats": 1},
        "gates": {
            "prompts": [PROMPT],
            "prompt_sets": [],
            "text_tokens": 0,
            "new_tokens": 2,
            "performance": {"mode": "off"},
        },
        "publish": {"prompt": PROMPT, "max_output_len": 4},
    }
