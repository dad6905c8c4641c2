"""What a person reads when the object storage does not work, and which services are refused."""

import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from trtforge.store import AliasName, Manifest, Store
from trtforge.store.client import (
    BucketMissingError,
    BucketNameError,
    EndpointInvalidError,
    StoreAccessError,
    StoreUnreachableError,
)
from trtforge.store.objects import ConditionalWritesError

DIGEST = "0" * 64


@pytest.fixture
def connect(s3: Any, tmp_path: Path) -> Callable[..., Store]:
    """Opens a store, with some settings other than the right ones."""

    def connect_with(**wrong: Any) -> Store:
        settings = {
            "endpoint_url": s3.endpoint_url,
            "bucket": s3.bucket,
            "access_key_id": s3.access_key_id,
            "secret_access_key": SecretStr(s3.secret_access_key),
            "cache_dir": tmp_path / "cache",
            "max_attempts": 1,
        }
        return Store.from_settings(**(settings | wrong))

    return connect_with


def test_the_right_settings_work(connect: Callable[..., Store]) -> None:
    assert connect().get_stage("compile", DIGEST) is None


def test_services_without_checksum_headers_can_be_used(
    connect: Callable[..., Store], write_file: Callable[..., Any], tmp_path: Path
) -> None:
    store = connect(checksums="when_required")
    path, ref = write_file("engine", b"bytes")
    assert store.put_file(path, ref)
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"bytes"


@pytest.mark.parametrize(
    "wrong",
    [
        {"access_key_id": "NOSUCHKEYID"},
        {"secret_access_key": SecretStr("not-the-secret")},
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.get_stage("compile", DIGEST),
        lambda store: store.put_bytes(b"x", "x"),
    ],
)
def test_wrong_credentials_are_named_as_such_and_not_shown(
    connect: Callable[..., Store], s3: Any, wrong: dict[str, Any], use: Callable[[Store], Any]
) -> None:
    with pytest.raises(StoreAccessError) as caught:
        use(connect(**wrong))
    message = str(caught.value)
    assert s3.endpoint_url in message
    assert s3.bucket in message
    for secret in (s3.access_key_id, s3.secret_access_key, "NOSUCHKEYID", "not-the-secret"):
        assert secret not in message


def test_an_endpoint_where_nobody_listens(connect: Callable[..., Store], s3: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StoreUnreachableError, match="no answer") as caught:
            connect(endpoint_url=url).get_stage("compile", DIGEST)
    assert url in str(caught.value)
    assert s3.bucket in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.get_stage("compile", DIGEST),
        lambda store: store.put_run_file("run", "log.txt", b"x"),
        lambda store: store.put_bytes(b"x", "x"),
    ],
)
def test_a_misspelt_bucket_is_reported_and_not_created(
    connect: Callable[..., Store], s3: Any, use: Callable[[Store], Any]
) -> None:
    # SeaweedFS would create it at the first write.
    with pytest.raises(BucketMissingError, match="no such bucket") as caught:
        use(connect(bucket=f"{s3.bucket}-x"))
    assert s3.endpoint_url in str(caught.value)
    assert f"{s3.bucket}-x" not in [b["Name"] for b in s3.client.list_buckets()["Buckets"]]


def test_names_and_addresses_that_cannot_be(connect: Callable[..., Store]) -> None:
    with pytest.raises(BucketNameError, match="not a name that S3 allows"):
        connect(bucket="no spaces").get_stage("compile", DIGEST)
    with pytest.raises(EndpointInvalidError, match="endpoint_url = 'nowhere'"):
        connect(endpoint_url="nowhere")


def test_the_password_in_an_address_is_not_shown(connect: Callable[..., Store]) -> None:
    with pytest.raises(StoreUnreachableError) as caught:
        connect(endpoint_url="http://user:hidden@127.0.0.1:1").get_stage("compile", DIGEST)
    assert "hidden" not in str(caught.value)


def test_the_probe_leaves_nothing_behind(store: Store, s3: Any) -> None:
    store.probe_conditional_writes()
    assert s3.client.list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 0


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_service_that_ignores_conditions_gets_no_manifest_and_no_alias(
    store: Store,
    hooks: Callable[..., None],
    header: str,
    make_files: Callable[..., Any],
    make_manifest: Callable[..., Manifest],
) -> None:
    def ignore_condition(request: Any, **_: Any) -> None:
        if header in request.headers:
            del request.headers[header]

    hooks("before-sign.s3.PutObject", ignore_condition)
    directory, files = make_files(engine=b"engine")
    with pytest.raises(ConditionalWritesError, match=header):
        store.publish(make_manifest(files), directory)
    assert list(store.list_manifests()) == []
    assert list(store.list_aliases()) == []
    assert store.get_alias(AliasName("m", "g", "b", "latest")) is None
