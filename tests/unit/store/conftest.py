"""A `Store` on a real S3 server, and small things to put into it."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from trtforge.files import FileRef, describe_directory
from trtforge.store import Manifest, ManifestCore, ModelIdentity, Parents, Store
from trtforge.store.client import S3Client, make_client

MIB = 1 << 20


@cache
def shared_client(endpoint_url: str, access_key_id: str, secret_access_key: str) -> S3Client:
    """Making a client takes boto3 a good part of a second."""
    return make_client(
        endpoint_url=endpoint_url,
        access_key_id=access_key_id,
        secret_access_key=SecretStr(secret_access_key),
    )


_used: dict[str, Any] = {}


@pytest.fixture
def s3(s3: Any) -> Any:
    """An empty bucket; the same one for all tests here.

    SeaweedFS takes 0.2 s for the first write to a new bucket.
    """
    reused = _used.setdefault(s3.endpoint_url, s3)
    client, bucket = reused.client, {"Bucket": reused.bucket}
    for upload in client.list_multipart_uploads(**bucket).get("Uploads", []):
        client.abort_multipart_upload(**bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    left = [{"Key": item["Key"]} for item in client.list_objects_v2(**bucket).get("Contents", [])]
    if left:
        client.delete_objects(**bucket, Delete={"Objects": left})
    return reused


@pytest.fixture
def hooks(s3: Any) -> Iterator[Callable[[str, Callable[..., Any]], None]]:
    """Lets a test come between boto3 and the server, by boto3's events, until it ends."""
    events = shared_client(s3.endpoint_url, s3.access_key_id, s3.secret_access_key).meta.events
    registered: list[tuple[str, Callable[..., Any]]] = []

    def hook(event: str, handler: Callable[..., Any]) -> None:
        events.register(event, handler)
        registered.append((event, handler))

    yield hook
    for event, handler in registered:
        events.unregister(event, handler)


@pytest.fixture
def open_store(s3: Any, tmp_path: Path) -> Callable[..., Store]:
    """Opens stores on the test's bucket, as machines would: each with a cache of its own."""

    def open_one(machine: str = "here", cache_dir: Path | None = None) -> Store:
        client = shared_client(s3.endpoint_url, s3.access_key_id, s3.secret_access_key)
        cache_dir = cache_dir or tmp_path / f"cache-{machine}"
        return Store(client, s3.bucket, cache_dir, part_bytes=5 * MIB)

    return open_one


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[..., tuple[Path, list[FileRef]]]:
    """Writes files into a new directory and describes them."""

    def make(**contents: bytes) -> tuple[Path, list[FileRef]]:
        directory = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        for name, data in contents.items():
            (directory / name).write_bytes(data)
        return directory, describe_directory(directory)

    return make


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Describes an engine of the given files; another `name` makes another engine."""

    def make(files: list[FileRef], name: str = "org/model") -> Manifest:
        core = ManifestCore(
            model=ModelIdentity(
                name=name,
                source=f"hf://{name}",
                revision="0" * 40,
                content_digest="1" * 64,
                licence="apache-2.0",
            ),
            spec={"dtype": "bfloat16"},
            config={"max_batch_size": 8},
            toolchain={"backend": "aoti", "gpu": "CPU"},
            files=tuple(files),
            parents=Parents(source="2" * 64, checkpoint="3" * 64),
            gates={"correctness": {"passed": True}},
        )
        return Manifest.of(core, timings={"compile": 1.5})

    return make


@pytest.fixture
def publish(
    store: Store,
    make_files: Callable[..., tuple[Path, list[FileRef]]],
    make_manifest: Callable[..., Manifest],
) -> Callable[[str], Manifest]:
    """Publishes a small engine of the given name."""

    def publish_one(name: str) -> Manifest:
        directory, files = make_files(engine=name.encode())
        return store.publish(make_manifest(files, name), directory)

    return publish_one


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small-disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this container may not mount file systems")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def described(path: Path, data: bytes) -> FileRef:
    """Write a file and describe it."""
    path.write_bytes(data)
    return FileRef(path.name, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[[str, bytes], tuple[Path, FileRef]]:
    """Writes one file and describes it."""

    def write(name: str, data: bytes) -> tuple[Path, FileRef]:
        return tmp_path / name, described(tmp_path / name, data)

    return write
