"""What a run on a worker leaves for people: no secret anywhere, and everything else in its place.

One flow run does it all: it shows artifacts, sends events, logs from a thread, and fails in a task
with tokens in its message. The tests look at what the Prefect API, the worker's console and an
OpenTelemetry collector have of it afterwards.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from forge import prefect_client_environment, prefect_http
from otlp_collector import Collector, attributes, collecting

from trtforge.stack import StackInfo
from trtforge.stack import state as stack_state

HUB_TOKEN = "hf_" + "QrStUvWxYzAbCdEfGhIjKlMnOpQrStUvWx"
SIGNATURE = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
WORD = "plain-looking-word-of-the-environment"
URL_PASSWORD = "password-in-a-url"

FLOW = '''
import logging
import os
import threading

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.events import emit_gate_failed, emit_regression
from tasks.reporting import observed_run, reported
from tasks.reporting.artifacts import show_card, show_log, show_plan, show_table
from trtforge import telemetry
from trtforge.errors import ServiceError
from trtforge.progress import StageEvent, announce
from trtforge.stages.plan import PlannedStage

TOKEN, SIGNATURE, WORD = (os.environ[name] for name in ("HF_TOKEN", "TEST_SIGNATURE", "A_TOKEN"))
URL = f"https://bucket.s3.example/k?X-Amz-Signature={SIGNATURE}&n=1"
PROXY = "http://me:" + os.environ["TEST_URL_PASSWORD"] + "@proxy:3128/"
log = logging.getLogger("trtforge.store")


@task(cache_policy=NO_CACHE, persist_result=False)
def pull():
    with reported("pull", engine_id="ab" * 32):
        get_run_logger().warning("using %s for %r", TOKEN, {"Authorization": f"Bearer {TOKEN}"})
        thread = threading.Thread(target=lambda: log.warning("from a thread with %s", WORD))
        thread.start()
        thread.join()
        print(telemetry.current_traceparent())
        show_plan([PlannedStage("pull", "to do", None, f"with {TOKEN}")], URL, model_bytes=10)
        benchmark = {
            who: [dict(concurrency=1, input_tokens=8, output_tokens=8, repeats=1, ttft_s=0.1,
                       itl_s=0.01, output_tokens_per_s=9.0, output_tokens_per_s_min=9.0,
                       output_tokens_per_s_max=9.0)] for who in ("engine", "eager")
        }
        card = f"# Engine {PROXY}\\n\\n## Benchmark\\n\\nx\\n"
        show_card(card, "s3://b/m", benchmark=benchmark)
        show_log("compile", f"[W] {TOKEN}\\n" + "a line\\n" * 300_000, where="s3://b/log")
        show_table("Odd key_", [{"a": "x" * 1000} for _ in range(2000)])
        emit_gate_failed("tiny", {"backend": "aoti"}, [{"passed": False, "reason": TOKEN}])
        emit_regression("tiny", engine_id="ab" * 32, than_engine_id="cd" * 32, alias="prod",
                        metric="output_tokens_per_s", before=10.0, now=5.0, allowed=0.05)
        announce(StageEvent("pull", "hit", "1.0 MB", seconds=0.5))


@task(cache_policy=NO_CACHE, persist_result=False)
def fail():
    with reported("compile"):
        try:
            raise ConnectionError(f"GET {URL} by {PROXY}: {WORD}")
        except ConnectionError as error:
            raise ServiceError(
                f"no answer for {TOKEN}", remedy="Wait", field="url", value=URL
            ) from error


@flow(persist_result=False)
def leaking():
    with observed_run("leaking", model="tiny", gpu_pool=None):
        pull()
        try:
            fail()
        finally:
            bare(return_state=True)


@flow(persist_result=False)
def bare():
    """Not observed: logging is clean all the same."""
    raise ValueError(f"bare {TOKEN}")
'''

DEPLOY = """
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import EntrypointType

from leaking_flow import leaking

with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="observed", type="process"))
deployment = leaking.to_deployment(
    "observed", work_pool_name="observed", entrypoint_type=EntrypointType.MODULE_PATH
)
print(deployment.apply())
"""


@dataclass(frozen=True)
class Left:
    """What the run left behind."""

    run: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    logs: list[dict[str, Any]]
    artifacts: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]
    console: str
    collector: Collector

    def everything(self) -> str:
        told = [self.run, self.tasks, self.logs, self.artifacts, self.events, self.console]
        spans = [str(span) for span in self.collector.spans]
        return json.dumps([*told, spans], default=str)


@pytest.fixture(scope="module")
def left(stack: StackInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    directory = tmp_path_factory.mktemp("observed")
    (directory / "leaking_flow.py").write_text(FLOW)
    environment = {
        **prefect_client_environment(stack),
        "PYTHONPATH": os.pathsep.join([str(directory), str(Path(__file__).parents[2])]),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "HF_TOKEN": HUB_TOKEN,
        "TEST_SIGNATURE": SIGNATURE,
        "A_TOKEN": WORD,
        "TEST_URL_PASSWORD": URL_PASSWORD,
        "TRTFORGE_LOG_FORMAT": "json",
    }
    with collecting() as collector:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint
        deployed = subprocess.run(
            [sys.executable, "-c", DEPLOY],
            env=environment,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert deployed.returncode == 0, deployed.stderr
        with prefect_http(stack) as http:
            deployment_id = deployed.stdout.split()[-1]
            created = http.post(f"deployments/{deployment_id}/create_flow_run", json={})
            run_id = created.raise_for_status().json()["id"]
            console = _work(environment, directory)
            yield _look(http, run_id, console, collector)


def _work(environment: dict[str, str], directory: Path) -> str:
    """A process worker that does one run; what it writes to its console."""
    prefect = Path(sys.executable).parent / "prefect"
    with subprocess.Popen(
        [prefect, "worker", "start", "--pool", "observed", "--run-once"],
        env=environment,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as worker:
        try:
            return worker.communicate(timeout=180)[0]
        except subprocess.TimeoutExpired:
            worker.terminate()
            return worker.communicate()[0]


def _look(http: httpx.Client, run_id: str, console: str, collector: Collector) -> Left:
    of_run = {"flow_runs": {"id": {"any_": [run_id]}}}

    def ask(what: str, body: dict[str, Any]) -> Any:
        return http.post(f"{what}/filter", json=body).raise_for_status().json()

    def tasks() -> dict[str, dict[str, Any]]:
        found = ask("task_runs", of_run)
        named = {task["name"].rpartition("-")[0]: task for task in found}
        # Of a flow that is not observed, the state's message is what Prefect makes of it.
        named.pop("bare", None)
        return named

    # Task runs and events are written from queues, a moment after the run.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = ask("events", {"filter": {"event": {"prefix": ["trtforge."]}}})["events"]
        # Other tests share the server: only what this run sent.
        mine = f"prefect.flow-run.{run_id}"
        events = [e for e in told if mine in json.dumps(e["related"])]
        if len(events) >= 2 and {"pull", "fail"} <= set(tasks()):
            break
        time.sleep(0.5)
    runs = ask("flow_runs", {"flow_runs": {"id": {"any_": [run_id]}}})
    assert runs[0]["state"]["type"] == "FAILED", console
    subflows = ask("flow_runs", {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}})
    every_run = [run_id, *(run["id"] for run in subflows)]
    logs = ask("logs", {"logs": {"flow_run_id": {"any_": every_run}}})
    artifacts = ask("artifacts", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    return Left(
        run=runs[0],
        tasks=tasks(),
        logs=logs,
        artifacts={artifact["key"]: artifact for artifact in artifacts},
        events=events,
        console=console,
        collector=collector,
    )


@pytest.mark.parametrize("secret", [HUB_TOKEN, SIGNATURE, WORD, URL_PASSWORD])
def test_no_secret_is_anywhere(left: Left, secret: str) -> None:
    assert secret not in left.everything()


def test_neither_are_the_stacks_own_secrets(left: Left, stack: StackInfo) -> None:
    state = stack_state.read(stack.home)
    assert state is not None
    assert state.prefect_auth is not None
    everything = left.everything()
    for secret in (state.s3.secret_access_key, state.postgres.password, state.prefect_auth):
        assert secret not in everything


def test_the_failure_is_told_with_its_class_and_remedy(left: Left) -> None:
    message = left.tasks["fail"]["state"]["message"]
    assert "ServiceError" in message
    assert "no answer for ***. Wait" in message
    assert "X-Amz-Signature=***&n=1" in message
    assert "no answer for ***" in left.run["state"]["message"]
    [trace] = [
        log["message"]
        for log in left.logs
        if "Traceback" in log["message"] and "ConnectionError" in log["message"]
    ][:1]
    assert "me:***@proxy" in trace


def test_a_flow_that_is_not_observed_has_a_clean_log_too(left: Left) -> None:
    assert any("ValueError: bare ***" in log["message"] for log in left.logs)


def test_a_record_from_a_thread_is_filed_with_the_run_and_the_task(left: Left) -> None:
    [record] = [log for log in left.logs if "from a thread" in log["message"]]
    run_id = left.run["id"]
    assert record["message"] == f"[{run_id[:8]} pull engine {'ab' * 6}] from a thread with ***"
    assert (record["flow_run_id"], record["task_run_id"]) == (run_id, left.tasks["pull"]["id"])


def test_the_console_has_json_lines_with_run_and_stage(left: Left) -> None:
    lines = [json.loads(line) for line in left.console.splitlines() if line.startswith("{")]
    [record] = [line for line in lines if "from a thread" in line["message"]]
    told = {name: record[name] for name in ("level", "run_id", "stage", "engine_id", "message")}
    assert told == {
        "level": "WARNING",
        "run_id": left.run["id"],
        "stage": "pull",
        "engine_id": "ab" * 32,
        "message": "from a thread with ***",
    }


def test_artifacts_have_stable_keys_and_are_of_limited_size(left: Left) -> None:
    assert {"plan", "engine-card", "compile-log", "odd-key"} <= set(left.artifacts)
    for artifact in left.artifacts.values():
        assert len(json.dumps(artifact["data"])) < 600_000
    assert "1.0 MB" not in left.artifacts["plan"]["data"]
    assert "2001 more rows" not in left.artifacts["odd-key"]["data"]
    assert "more rows" in left.artifacts["odd-key"]["data"]
    assert "](data:image/svg+xml;base64," in left.artifacts["engine-card"]["data"]
    assert "`s3://b/log`" in left.artifacts["compile-log"]["data"]


def test_events_name_the_model_and_the_engine(left: Left) -> None:
    events = {event["event"]: event for event in left.events}
    failed = events["trtforge.gate.failed"]
    assert failed["resource"]["prefect.resource.id"] == "trtforge.model.tiny"
    assert failed["payload"]["verdicts"] == [{"passed": False, "reason": "***"}]
    slower = events["trtforge.regression"]
    assert slower["resource"]["prefect.resource.id"] == f"trtforge.engine.{'ab' * 32}"
    assert slower["payload"]["change"] == -0.5
    related = {r["prefect.resource.role"]: r["prefect.resource.id"] for r in slower["related"]}
    assert related["model"] == "trtforge.model.tiny"
    assert related["flow-run"] == f"prefect.flow-run.{left.run['id']}"


def test_the_trace_has_the_run_and_its_stages(left: Left) -> None:
    run = left.collector.span("leaking")
    told = attributes(run.attributes)
    assert told["prefect.flow_run.id"] == left.run["id"]
    assert told["trtforge.model"] == "tiny"
    for name in ("stage pull", "stage compile"):
        assert left.collector.span(name).parent_span_id == run.span_id
    assert "no answer for ***" in left.collector.span("stage compile").status.message
    assert left.collector.metric("trtforge.stage.lookups", stage="pull", result="hit") == 1
    assert left.collector.metric("trtforge.runs", flow="leaking", outcome="failed") == 1
