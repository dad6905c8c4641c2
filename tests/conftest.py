"""Real services for the tests: one SeaweedFS, and one whole stack, per test session.

Nothing is started before a test asks for it. Services are ended when the session ends and, should
pytest be interrupted in a fixture, when its process exits.
"""

import atexit
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before anything imports prefect: a flow called by mistake fails at once instead of starting a
# temporary server, and nothing reports home.
os.environ.update(
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    DO_NOT_TRACK="1",
)
for _variable in [name for name in os.environ if name.startswith("TRTFORGE_")]:
    del os.environ[_variable]
for _variable in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
    os.environ.pop(_variable, None)
# An end by SIGTERM (a job that is cancelled) stops pytest as Ctrl-C does, with clean-up.
signal.signal(signal.SIGTERM, signal.default_int_handler)

from trtforge.stack import StackInfo, down, seaweedfs, service, up  # noqa: E402
from trtforge.stack.ports import StackPorts  # noqa: E402

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class S3Fixture:
    """A real S3 server and an empty bucket of one test."""

    client: "S3Client"
    bucket: str
    endpoint_url: str
    access_key_id: str
    secret_access_key: str


@dataclass(frozen=True)
class _Server:
    client: "S3Client"
    endpoint_url: str
    credentials: seaweedfs.S3Credentials


@contextmanager
def _removed_at_the_end(clean_up: Callable[[], None]) -> Iterator[None]:
    atexit.register(clean_up)
    try:
        yield
    finally:
        clean_up()
        atexit.unregister(clean_up)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[_Server]:
    home = Path(tempfile.mkdtemp(prefix="trtforge-s3-"))
    ports, credentials = StackPorts.free(), seaweedfs.S3Credentials.random()
    server = seaweedfs.SeaweedFS(home, ports, credentials)

    def clean_up() -> None:
        service.stop(server)
        shutil.rmtree(home, ignore_errors=True)

    with _removed_at_the_end(clean_up):
        service.ensure_running(server, lambda _: None)
        yield _Server(server.client(), server.address, credentials)


@pytest.fixture
def s3(_s3_server: _Server) -> S3Fixture:
    """An empty bucket on a real S3 server."""
    bucket = f"test-{uuid.uuid4().hex[:20]}"
    _s3_server.client.create_bucket(Bucket=bucket)
    return S3Fixture(
        client=_s3_server.client,
        bucket=bucket,
        endpoint_url=_s3_server.endpoint_url,
        access_key_id=_s3_server.credentials.access_key_id,
        secret_access_key=_s3_server.credentials.secret_access_key,
    )


@pytest.fixture(scope="session")
def stack() -> Iterator[StackInfo]:
    """The whole stack: S3, PostgreSQL and a Prefect server, on free ports."""
    home = Path(tempfile.mkdtemp(prefix="trtforge-stack-"))
    # mkdtemp's 0700 would keep out the user that PostgreSQL runs as when the tests run as root.
    home.chmod(0o711)

    def clean_up() -> None:
        down(home)
        shutil.rmtree(home, ignore_errors=True)

    with _removed_at_the_end(clean_up):
        yield up(home, StackPorts.free(), workers=False)
