"""The deployment: what the Prefect UI and API make of `deployments/prefect.yaml`."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from forge import prefect_client_environment, prefect_http, tiny_spec
from models import write_tiny_model

from trtforge.stack import StackInfo

_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def environment(stack: StackInfo) -> dict[str, str]:
    return prefect_client_environment(stack)


@pytest.fixture(scope="module")
def deployment(environment: dict[str, str], stack: StackInfo) -> dict[str, Any]:
    for arguments in (
        ["--no-prompt", "work-pool", "create", "cpu", "--type", "process"],
        ["--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"],
    ):
        done = subprocess.run(
            [_BIN / "prefect", *arguments],
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    with prefect_http(stack) as http:
        answer = http.get("deployments/name/build-engine/cpu").raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _run(stack: StackInfo, deployment: dict[str, Any], spec: dict[str, Any]) -> httpx.Response:
    with prefect_http(stack) as http:
        return http.post(
            f"deployments/{deployment['id']}/create_flow_run", json={"parameters": {"spec": spec}}
        )


def test_the_run_form_has_every_part_of_the_spec_described_and_in_order(
    deployment: dict[str, Any],
) -> None:
    schema = deployment["parameter_openapi_schema"]
    parts = schema["definitions"]["BuildSpec"]["properties"]
    ordered = sorted(parts, key=lambda name: parts[name]["position"])
    assert ordered == ["model", "checkpoint", "engine", "benchmark", "gates", "publish"]
    fields = schema["definitions"]["EngineSpec"]["properties"]
    assert all(field["description"] for field in fields.values())


@pytest.mark.parametrize(
    ("engine", "named"),
    [
        ({"backend": "tensorrt"}, "backend"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_batchsize": 2}, "max_batchsize"),
    ],
)
def test_the_api_refuses_a_wrong_value_and_names_the_field(
    stack: StackInfo, deployment: dict[str, Any], engine: dict[str, Any], named: str
) -> None:
    refused = _run(stack, deployment, {"model": {"source": "/nowhere"}, "engine": engine})
    assert refused.status_code == 409
    assert named in refused.text


def test_a_worker_builds_what_the_form_asks_for(
    stack: StackInfo, deployment: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    spec = tiny_spec(write_tiny_model(tmp_path / "by-form", seed=7))
    created = _run(stack, deployment, spec)
    assert created.status_code == 201, created.text
    http = prefect_http(stack)
    with subprocess.Popen(
        [_BIN / "prefect", "worker", "start", "--pool", "cpu", "--run-once"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as worker:
        try:
            output, _ = worker.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            worker.terminate()
            output, _ = worker.communicate()
    state: dict[str, Any] = {}
    for _ in range(20):
        state = http.get(f"flow_runs/{created.json()['id']}").json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED"):
            break
        time.sleep(0.5)
    assert state["type"] == "COMPLETED", f"{state}\n{output}"
    of_run = {"artifacts": {"flow_run_id": {"any_": [created.json()["id"]]}}}
    found = http.post("artifacts/filter", json=of_run).json()
    assert {"engine-card", "benchmark-table", "manifest", "plan"} <= {a["key"] for a in found}
