"""The CPU image, really built and run: a worker in a container builds an engine.

Skipped where there is no Docker engine and none can be started (tests/docker_engine.py), and where
there is no base image (tests/docker_images.py).
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker_engine import DockerEngine
from docker_images import WorkerImage
from forge import prefect_http, tiny_spec
from models import write_tiny_model

from trtforge.stack import StackInfo
from trtforge.stack import state as stack_state

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]

_ROOT = Path(__file__).parents[2]
_UID = 10001


@pytest.fixture
def engine(docker_engine: DockerEngine) -> Any:
    return docker_engine.client


@pytest.fixture
def image(cpu_image: WorkerImage) -> str:
    return cpu_image.tag


@pytest.fixture(scope="module")
def shared(stack: StackInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What containers get to see: a model, and the secret key in a file."""
    state = stack_state.read(stack.home)
    assert state is not None
    directory = tmp_path_factory.mktemp("shared")
    for parent in (directory, *directory.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    for file in write_tiny_model(directory / "tiny", seed=7).iterdir():
        file.chmod(0o644)
    (directory / "s3_secret_access_key").write_text(state.s3.secret_access_key)
    (directory / "prefect_auth").write_text(str(state.prefect_auth))
    return directory


@pytest.fixture(scope="module")
def options(stack: StackInfo, shared: Path) -> dict[str, Any]:
    """How the services of compose.yaml are started, on this machine's network."""
    state = stack_state.read(stack.home)
    assert state is not None
    return {
        "network_mode": "host",
        "init": True,
        "volumes": {str(shared): {"bind": "/shared", "mode": "ro"}},
        "environment": {
            "PREFECT_API_URL": stack.prefect_api_url,
            "PREFECT_API_AUTH_STRING_FILE": "/shared/prefect_auth",
            "TRTFORGE_S3_ENDPOINT_URL": stack.s3_endpoint_url,
            "TRTFORGE_S3_BUCKET": stack.s3_bucket,
            "TRTFORGE_S3_REGION": stack.s3_region,
            "TRTFORGE_S3_ACCESS_KEY_ID": state.s3.access_key_id,
            "TRTFORGE_S3_SECRET_ACCESS_KEY_FILE": "/shared/s3_secret_access_key",
            "TRTFORGE_IMAGE_DIGEST": f"sha256:{'0' * 64}",
        },
    }


def test_it_runs_as_somebody_without_rights_over_its_own_files(engine: Any, image: str) -> None:
    said = engine.containers.run(
        image,
        ["sh", "-c", "id -u; touch /opt/trtforge/new 2>/dev/null || echo read-only"],
        network_mode="none",
        remove=True,
    )
    assert said.decode().split() == [str(_UID), "read-only"]


@pytest.mark.parametrize("package", ["trtforge", "deployments"])
def test_it_has_every_file_of_the_packages(engine: Any, image: str, package: str) -> None:
    listing = (
        f"import pathlib, {package}; root = pathlib.Path({package}.__file__).parent; "
        "print(*sorted(str(p.relative_to(root)) for p in root.rglob('*') "
        "if p.is_file() and p.suffix != '.pyc'), sep='\\n')"
    )
    said = engine.containers.run(
        image, ["python3", "-c", listing], network_mode="none", remove=True
    )
    root = _ROOT / package
    data = [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".py")
    ]
    assert data
    assert set(data) <= set(said.decode().split())


def test_its_logs_have_their_secrets_taken_out(engine: Any, image: str) -> None:
    """The job templates name that file for the runs, too."""
    said = engine.containers.run(
        image,
        ["sh", "-c", 'echo "$PREFECT_LOGGING_SETTINGS_PATH"; cat "$PREFECT_LOGGING_SETTINGS_PATH"'],
        network_mode="none",
        remove=True,
    )
    path, _, content = said.decode().partition("\n")
    assert content == (_ROOT / "trtforge" / "logging.yml").read_text()
    for pool in ("cpu-docker", "gpu-docker"):
        template = json.loads((_ROOT / "deployments" / "pools" / f"{pool}.json").read_text())
        assert template["job_configuration"]["env"]["PREFECT_LOGGING_SETTINGS_PATH"] == path


def test_a_worker_in_a_container_builds_an_engine(
    engine: Any, image: str, options: dict[str, Any], stack: StackInfo
) -> None:
    compose = yaml.safe_load((_ROOT / "docker" / "compose.yaml").read_text())
    set_up = compose["services"]["set-up"]["command"]
    engine.containers.run(image, set_up, remove=True, **options)

    worker = engine.containers.run(image, detach=True, **options)
    try:
        run_id = _start(stack, tiny_spec(Path("/shared/tiny")))
        state = _end_of(stack, run_id, worker)
        assert state["type"] == "COMPLETED", worker.logs(tail=60).decode()
        worker.reload()
        assert worker.attrs["State"]["Health"]["Status"] == "healthy"
        assert _secret(stack) not in worker.logs().decode()
        assert _secret(stack) not in str(worker.attrs["Config"])
    finally:
        worker.remove(force=True, v=True)


def _start(stack: StackInfo, spec: dict[str, Any]) -> str:
    with prefect_http(stack) as http:
        found = http.get("deployments/name/build-engine/cpu").raise_for_status()
        made = http.post(
            f"deployments/{found.json()['id']}/create_flow_run", json={"parameters": {"spec": spec}}
        ).raise_for_status()
    return str(made.json()["id"])


def _end_of(stack: StackInfo, run_id: str, worker: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 900
    http = prefect_http(stack)
    while True:
        state: dict[str, Any] = http.get(f"flow_runs/{run_id}").raise_for_status().json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        worker.reload()
        assert worker.status == "running", worker.logs(tail=60).decode()
        assert time.monotonic() < deadline, worker.logs(tail=60).decode()
        time.sleep(2)


def _secret(stack: StackInfo) -> str:
    state = stack_state.read(stack.home)
    assert state is not None
    return state.s3.secret_access_key
