"""A stack of its own with both workers, for those who look at it through a browser.

The models are in a bucket of its own S3, as at a site whose workers share no disk: the build and
its GPU half read them with the AWS credentials of their workers' environment.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from forge import prefect_http
from pydantic import SecretStr

from trtforge.stack import StackInfo, StackPorts, down, up
from trtforge.stack import state as stack_state
from trtforge.store.client import make_client

GPU_POOL = "gpu-standin"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_MODELS = "models"


@dataclass(frozen=True)
class UiPlatform:
    """Where it is, and what its API tells to compare the pages with.

    `auth` is what the login page asks for.
    """

    stack: StackInfo
    auth: str = field(repr=False)
    http: httpx.Client

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"flow_runs/{run_id}").raise_for_status().json()
        return found

    def runs(self, **of: Any) -> list[dict[str, Any]]:
        """Runs, by the fields of Prefect's filter; the newest first."""
        body = {"flow_runs": of, "sort": "EXPECTED_START_TIME_DESC"}
        return self._found("flow_runs", body)

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The latest artifact of each key that a run has left."""
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}, "sort": "UPDATED_DESC"}
        return {found["key"]: found for found in reversed(self._found("artifacts", body))}

    def messages(self, run_id: str) -> list[str]:
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self._found("logs", body)]

    def _found(self, what: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (
            self.http.post(f"{what}/filter", json=body).raise_for_status().json()
        )
        return found

    def upload(self, model: Path) -> str:
        """Put a model directory where the workers find it; its source, for a spec."""
        client = _s3(self.stack)
        for file in model.iterdir():
            client.upload_file(str(file), _MODELS, f"{model.name}/{file.name}")
        return f"s3://{_MODELS}/{model.name}"


@contextmanager
def platform_with_workers() -> Iterator[UiPlatform]:
    """What `trtforge up` starts, on free ports, for as long as the block runs."""
    home = Path(tempfile.mkdtemp(prefix="trtforge-ui-"))
    home.chmod(0o711)  # PostgreSQL runs as somebody else, should this be root

    def clean_up() -> None:
        down(home)
        shutil.rmtree(home, ignore_errors=True)

    before = dict(os.environ)
    atexit.register(clean_up)
    try:
        info = up(home, StackPorts.free(), workers=False)
        _s3(info).create_bucket(Bucket=_MODELS)
        os.environ.update(_aws_environment(info))
        up(home)
        state = stack_state.read(home)
        assert state is not None
        assert state.prefect_auth is not None
        with prefect_http(info) as http:
            yield UiPlatform(info, state.prefect_auth, http)
    finally:
        os.environ.clear()
        os.environ.update(before)
        clean_up()
        atexit.unregister(clean_up)


def _s3(info: StackInfo) -> Any:
    state = stack_state.read(info.home)
    assert state is not None
    return make_client(
        endpoint_url=state.s3.endpoint_url,
        region=state.s3.region,
        access_key_id=state.s3.access_key_id,
        secret_access_key=SecretStr(state.s3.secret_access_key),
    )


def _aws_environment(info: StackInfo) -> dict[str, str]:
    state = stack_state.read(info.home)
    assert state is not None
    return {
        "AWS_ENDPOINT_URL_S3": state.s3.endpoint_url,
        "AWS_DEFAULT_REGION": state.s3.region,
        "AWS_ACCESS_KEY_ID": state.s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": state.s3.secret_access_key,
    }
