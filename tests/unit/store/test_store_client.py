"""What a person reads when the object storage does not work, and which services are refused."""

import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from trtforge.settings import SettingInvalidError, Settings, load_settings
from trtforge.store import AliasName, Manifest, Store
from trtforge.store.client import (
    BucketMissingError,
    BucketNameError,
    CaBundleError,
    EndpointInvalidError,
    ProfileUnknownError,
    StoreAccessError,
    StoreUnreachableError,
    Wire,
    make_client,
)
from trtforge.store.connect import Elsewhere, client_of, store_of
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


def client_with(s3: Any, wire: Wire) -> Any:
    return make_client(
        endpoint_url=s3.endpoint_url,
        access_key_id=s3.access_key_id,
        secret_access_key=SecretStr(s3.secret_access_key),
        wire=wire,
    )


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (Wire(encryption="AES256"), {"x-amz-server-side-encryption": "AES256"}),
        (
            Wire(encryption="aws:kms", kms_key_id="the-key"),
            {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": "the-key",
            },
        ),
    ],
)
def test_encryption_goes_with_everything_that_is_written(
    s3: Any,
    tmp_path: Path,
    wire: Wire,
    expected: dict[str, str],
    make_files: Callable[..., Any],
    make_manifest: Callable[..., Manifest],
) -> None:
    client = client_with(s3, wire)
    sent: dict[str, list[dict[str, str]]] = {}

    def look(request: Any, operation_name: str, **_: Any) -> None:
        found = {
            name: value
            for name, value in request.headers.items()
            if name.lower().startswith("x-amz-server-side")
        }
        sent.setdefault(operation_name, []).append(
            {name.lower(): v.decode() if isinstance(v, bytes) else v for name, v in found.items()}
        )
        for name in found:  # this server has no keys
            del request.headers[name]

    client.meta.events.register("before-sign.s3", look)
    store = Store(client, s3.bucket, tmp_path / "cache", part_bytes=5 << 20)
    directory, files = make_files(engine=bytes(6 << 20), config=b"{}")
    manifest = store.publish(make_manifest(files), directory)
    store.set_alias(AliasName("m", "g", "b", "latest"), manifest.engine_id, by="run")
    store.materialise(manifest.core.files, tmp_path / "back", use_cache=False)
    assert {"PutObject", "CreateMultipartUpload", "UploadPart", "GetObject"} <= set(sent)
    for operation, headers in sent.items():
        writes = operation in {"PutObject", "CreateMultipartUpload"}
        assert all(header == (expected if writes else {}) for header in headers), operation


@pytest.mark.parametrize(
    ("addressing", "host"), [("auto", "s3.example"), ("virtual", "bucket.s3.example")]
)
def test_where_the_bucket_stands_in_addresses(addressing: Any, host: str) -> None:
    client = make_client(
        endpoint_url="http://s3.example",
        access_key_id="key",
        secret_access_key=SecretStr("secret"),
        wire=Wire(addressing=addressing),
    )
    url = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
    assert url.startswith(f"http://{host}/")


def test_requests_go_through_the_proxy(s3: Any, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
        client = client_with(s3, Wire(proxy_url=proxy, max_attempts=1))
        with pytest.raises(StoreUnreachableError, match="ProxyConnectionError"):
            Store(client, s3.bucket, tmp_path).get_stage("compile", DIGEST)


def test_files_and_profiles_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaBundleError, match=r"none\.pem"):
        make_client(endpoint_url="https://s3.example", wire=Wire(ca_bundle=tmp_path / "none.pem"))
    with pytest.raises(ProfileUnknownError, match="profile = 'no-such-profile'"):
        make_client(endpoint_url=None, wire=Wire(profile="no-such-profile"))


def settings(monkeypatch: pytest.MonkeyPatch, home: Path, **variables: str) -> Settings:
    monkeypatch.setenv("TRTFORGE_HOME", str(home))
    for name, value in variables.items():
        monkeypatch.setenv(f"TRTFORGE_{name}", value)
    return load_settings()


def test_the_environment_configures_the_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3: Any
) -> None:
    found = settings(
        monkeypatch,
        tmp_path,
        S3_ENDPOINT_URL=s3.endpoint_url,
        S3_BUCKET=s3.bucket,
        S3_ACCESS_KEY_ID=s3.access_key_id,
        S3_SECRET_ACCESS_KEY=s3.secret_access_key,
        S3_CHECKSUMS="when_required",
        S3_CONNECT_TIMEOUT_S="3",
        S3_READ_TIMEOUT_S="4.5",
        S3_MAX_ATTEMPTS="2",
    )
    config = client_of(found).meta.config
    assert (config.connect_timeout, config.read_timeout) == (3, 4.5)
    assert config.request_checksum_calculation == "when_required"
    assert config.retries["total_max_attempts"] == 2
    store = store_of(found)
    assert store.get_stage("compile", DIGEST) is None
    assert store.cache.root == tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_CHECKSUMS", "sometimes"),
        ("S3_ADDRESSING", "dns"),
        ("S3_ENCRYPTION", "rot13"),
        ("S3_READ_TIMEOUT_S", "-1"),
        ("S3_MAX_ATTEMPTS", "0"),
    ],
)
def test_a_variable_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(SettingInvalidError, match=f"TRTFORGE_{name} = '{value}'"):
        settings(monkeypatch, tmp_path, **{name: value})


def test_a_key_without_encryption_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SettingInvalidError, match="TRTFORGE_S3_ENCRYPTION = 'AES256'"):
        settings(monkeypatch, tmp_path, S3_ENCRYPTION="AES256", S3_KMS_KEY_ID="key")


def test_our_keys_are_not_sent_to_a_second_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "THEIRS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "their-secret")
    found = settings(
        monkeypatch,
        tmp_path,
        S3_ENDPOINT_URL="http://first.example",
        S3_BUCKET="first",
        S3_ACCESS_KEY_ID="OURS",
        S3_SECRET_ACCESS_KEY="our-secret",
    )
    same, other = client_of(found), client_of(found, Elsewhere("http://second.example"))
    place = {"Bucket": "b", "Key": "k"}
    assert "OURS" in same.generate_presigned_url("get_object", Params=place)
    theirs = other.generate_presigned_url("get_object", Params=place)
    assert theirs.startswith("http://second.example")
    assert "THEIRS" in theirs
    assert "OURS" not in theirs
