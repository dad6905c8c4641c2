"""The automations at work: what an event starts, and what a webhook receives."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from typing import Any
from uuid import uuid4

import httpx
import pytest
from forge import prefect_client_environment, prefect_http
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.sync import sync
from trtforge.stack import StackInfo

_PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def http(stack: StackInfo) -> Iterator[httpx.Client]:
    with prefect_http(stack) as client:
        yield client


@pytest.fixture(scope="module")
def deploy(stack: StackInfo) -> Callable[[], Any]:
    environment = prefect_client_environment(stack)
    named = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
    }

    def run() -> Any:
        with temporary_settings(named):
            return sync()

    return run


@contextmanager
def webhook() -> Iterator[tuple[str, "Queue[bytes]"]]:
    """A server on loopback, and what is posted to it."""
    received: Queue[bytes] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def notifications(http: httpx.Client, url: str) -> Iterator[None]:
    """The block that the notifications go to."""
    block_type = http.get("block_types/slug/webhook").raise_for_status().json()
    of_type = {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}}
    schema = http.post("block_schemas/filter", json=of_type).json()[0]
    block = {
        "name": "trtforge-notifications",
        "block_type_id": block_type["id"],
        "block_schema_id": schema["id"],
        "data": {"url": url, "method": "POST"},
    }
    made = http.post("block_documents/", json=block).raise_for_status().json()
    try:
        yield
    finally:
        http.delete(f"block_documents/{made['id']}").raise_for_status()


def emit(http: httpx.Client, event: str, resource: str, payload: dict[str, Any]) -> None:
    body = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": resource},
        "payload": payload,
    }
    http.post("events", json=[body]).raise_for_status()


def deployment_id(http: httpx.Client, name: str) -> str:
    return str(http.get(f"deployments/name/{name}").raise_for_status().json()["id"])


def test_changed_weights_start_a_rebuild_of_the_model_that_the_event_names(
    http: httpx.Client, deploy: Callable[[], Any]
) -> None:
    deploy()
    # A new automation is known to the server's triggers a moment later.
    time.sleep(2)
    source = "hf://org/model-that-changed"
    emit(http, "trtforge.weights.changed", "trtforge.model.changed", {"source": source})
    emit(http, "trtforge.weights.changed", "trtforge.model.changed", {})
    runs = {"deployments": {"id": {"any_": [deployment_id(http, "rebuild-catalog/on-change")]}}}
    # Without a source, the run finds no model: an empty one would mean all of them.
    wanted = [source, "no source in the event"]
    deadline = time.monotonic() + _PATIENCE_S
    found: list[dict[str, Any]] = []
    while len(found) < 2 and time.monotonic() < deadline:
        time.sleep(0.3)
        answer = http.post("flow_runs/filter", json=runs).raise_for_status().json()
        # Other tests' events reach the same automation.
        found = [run for run in answer if run["parameters"]["source"] in wanted]
    assert sorted(run["parameters"]["source"] for run in found) == wanted
    for run in found:
        http.delete(f"flow_runs/{run['id']}").raise_for_status()


def test_a_failed_run_and_an_event_reach_the_webhook_escaped(
    http: httpx.Client, deploy: Callable[[], Any]
) -> None:
    with webhook() as (url, received):
        with notifications(http, url):
            made = {change.name for change in deploy().changes if change.kind == "automation"}
            assert "notify of failed runs" in made
            # A new automation is known to the server's triggers a moment later.
            time.sleep(2)
            route = f"deployments/{deployment_id(http, 'build-engine/cpu')}/create_flow_run"
            parameters = {"spec": {"model": {"source": "/nowhere"}}}
            run = http.post(route, json={"parameters": parameters}).raise_for_status().json()
            state = {"type": "FAILED", "name": "Failed", "message": '<!channel> said "no" & left'}
            body = {"state": state, "force": True}
            http.post(f"flow_runs/{run['id']}/set_state", json=body).raise_for_status()
            text = json.loads(received.get(timeout=_PATIENCE_S))["text"]
            assert text.startswith(
                f'build-engine / {run["name"]} Failed: &lt;!channel&gt; said "no" &amp; left\n'
            )
            assert run["id"] in text
            gate = {"model": "m", "failed": 1, "judged": 4}
            emit(http, "trtforge.gate.failed", "trtforge.model.m", gate)
            text = json.loads(received.get(timeout=_PATIENCE_S))["text"]
            assert text == "Gate failed, nothing was published: m, 1 of 4 verdicts"
            http.delete(f"flow_runs/{run['id']}").raise_for_status()
        deploy()
