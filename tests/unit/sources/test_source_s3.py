"""Weights from object storage, on a real S3 server (fixture `s3`)."""

import re
import select
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

from trtforge.files import files_digest
from trtforge.progress import Progress
from trtforge.sources import (
    BucketAccessError,
    BucketNotFoundError,
    BucketUnreachableError,
    LocalSource,
    NoWeightsError,
    ObjectChangedError,
    S3Source,
    fetch,
    resolve,
)

_PREFIX = "models/small"


@pytest.fixture
def bucket(s3: Any, model: Path) -> Any:
    """The bucket with `model` under `models/small`."""
    for path in model.rglob("*"):
        if path.is_file():
            key = f"{_PREFIX}/{path.relative_to(model).as_posix()}"
            s3.client.upload_file(str(path), s3.bucket, key)
    return s3


def test_the_same_bytes_give_the_same_digest_as_a_directory(
    bucket: Any, model: Path, selected: set[str], tmp_path: Path
) -> None:
    resolved = resolve(S3Source(bucket.bucket, _PREFIX), s3_client=bucket.client)
    assert {f.path for f in resolved.files} == selected
    assert resolved.uri == f"s3://{bucket.bucket}/{_PREFIX}"
    assert resolved.licence == "apache-2.0"
    from_s3 = fetch(resolved, tmp_path / "s3", s3_client=bucket.client)
    assert {p.name for p in (tmp_path / "s3").iterdir()} == selected
    from_directory = fetch(resolve(LocalSource(model)), tmp_path / "local")
    assert files_digest(from_s3) == files_digest(from_directory)


def test_finished_files_are_not_downloaded_again(bucket: Any, tmp_path: Path) -> None:
    resolved = resolve(S3Source(bucket.bucket, _PREFIX), s3_client=bucket.client)
    files = fetch(resolved, tmp_path, s3_client=bucket.client)
    assert fetch(resolved, tmp_path, s3_client="nobody asks it") == files


def test_a_dropped_connection_goes_on_where_it_broke(bucket: Any, tmp_path: Path) -> None:
    resolved = resolve(S3Source(bucket.bucket, _PREFIX), s3_client=bucket.client)
    with _CuttingProxy(bucket.endpoint_url, after_bytes=290_000) as proxy:
        files = fetch(resolved, tmp_path / "dest", s3_client=_client(bucket, proxy.endpoint))
    first, second = proxy.ranges_asked("model.safetensors")
    assert first == ""
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 250_000
    undisturbed = fetch(resolved, tmp_path / "other", s3_client=bucket.client)
    assert files_digest(files) == files_digest(undisturbed)


def test_a_second_call_goes_on_where_the_first_was_killed(bucket: Any, tmp_path: Path) -> None:
    def die_in_the_middle(progress: Progress) -> None:
        if progress.what.startswith("fetching") and progress.done > 200_000:
            raise KeyboardInterrupt

    resolved = resolve(S3Source(bucket.bucket, _PREFIX), s3_client=bucket.client)
    with pytest.raises(KeyboardInterrupt):
        fetch(resolved, tmp_path, s3_client=bucket.client, on_progress=die_in_the_middle)
    assert not (tmp_path / "model.safetensors").exists()

    with _CuttingProxy(bucket.endpoint_url, after_bytes=1 << 40) as proxy:
        files = fetch(resolved, tmp_path, s3_client=_client(bucket, proxy.endpoint))
    assert proxy.ranges_asked("model.safetensors") == ["bytes=262144-"]
    assert sum(f.size_bytes for f in files) == resolved.size_bytes
    assert {p.name for p in tmp_path.glob("*.partial")} == set()


def test_an_object_replaced_after_resolving_is_refused(bucket: Any, tmp_path: Path) -> None:
    resolved = resolve(S3Source(bucket.bucket, _PREFIX), s3_client=bucket.client)
    bucket.client.put_object(Bucket=bucket.bucket, Key=f"{_PREFIX}/config.json", Body=b"{}")
    with pytest.raises(ObjectChangedError, match=r"config\.json changed"):
        fetch(resolved, tmp_path, s3_client=bucket.client)


def test_an_object_deleted_after_resolving_is_named(bucket: Any, tmp_path: Path) -> None:
    resolved = resolve(S3Source(bucket.bucket, _PREFIX), s3_client=bucket.client)
    bucket.client.delete_object(Bucket=bucket.bucket, Key=f"{_PREFIX}/tokenizer.json")
    with pytest.raises(ObjectChangedError, match=r"tokenizer\.json"):
        fetch(resolved, tmp_path, s3_client=bucket.client)


def test_a_bucket_that_does_not_exist_is_named(s3: Any) -> None:
    with pytest.raises(BucketNotFoundError, match="no-such-bucket"):
        resolve(S3Source("no-such-bucket", "x"), s3_client=s3.client)


def test_a_prefix_without_objects_is_told_apart_from_a_missing_bucket(s3: Any) -> None:
    with pytest.raises(NoWeightsError, match="no files"):
        resolve(S3Source(s3.bucket, "nothing/here"), s3_client=s3.client)


def test_wrong_credentials_are_refused_without_showing_them(s3: Any) -> None:
    client = _client(s3, s3.endpoint_url, secret="not-the-right-secret")
    with pytest.raises(BucketAccessError, match="s3:GetObject") as caught:
        resolve(S3Source(s3.bucket, "x"), s3_client=client)
    assert "not-the-right-secret" not in str(caught.value)


def test_a_dead_endpoint_is_a_service_error(unused_port: int) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{unused_port}",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )
    with pytest.raises(BucketUnreachableError, match="cannot be reached"):
        resolve(S3Source("bucket", "x"), s3_client=client)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _client(s3: Any, endpoint: str, secret: str = "") -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=secret or s3.secret_access_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )


class _CuttingProxy:
    """Passes bytes on to the S3 server, and once cuts a connection after `after_bytes` answered."""

    def __init__(self, upstream: str, *, after_bytes: int) -> None:
        address = urlsplit(upstream)
        self._upstream = (str(address.hostname), int(address.port or 80))
        self._after_bytes = after_bytes
        self._requests: list[bytes] = []
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._pass_on(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "_CuttingProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ranges_asked(self, filename: str) -> list[str]:
        """The Range header of each GET for `filename`, empty where there was none."""
        asked = re.findall(rb"GET (\S+) HTTP/1.1\r\n(.*?)\r\n\r\n", self._sent(), re.DOTALL)
        return [
            (re.findall(rb"(?im)^range: *(\S+)", headers) or [b""])[0].decode()
            for path, headers in asked
            if path.decode().endswith(filename)
        ]

    def _sent(self) -> bytes:
        return b"".join(self._requests)

    def _pass_on(self, downstream: socket.socket) -> None:
        answered_bytes = 0
        with socket.create_connection(self._upstream) as upstream:
            while True:
                for ready in select.select([downstream, upstream], [], [])[0]:
                    content = ready.recv(1 << 14)
                    if not content:
                        return
                    if ready is downstream:
                        self._requests.append(content)
                        upstream.sendall(content)
                        continue
                    answered_bytes += len(content)
                    downstream.sendall(content)
                    if answered_bytes > self._after_bytes:
                        self._after_bytes = 1 << 40
                        return
