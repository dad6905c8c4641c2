"""Engines are copied to a second bucket, whole, and only what is missing there."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef, describe_directory
from trtforge.store import AliasName, Manifest, Store
from trtforge.store.benchmarks import BenchmarkRecord, Benchmarks
from trtforge.store.init import RULE_ID, init_bucket
from trtforge.store.layout import blob_key
from trtforge.store.mirror import SameBucketError, mirror_engine
from trtforge.store.transfer import BlobCorruptError

PROD = AliasName("org/model", "NVIDIA H200", "trtllm", "prod")
Publish = Callable[[str], Manifest]


@pytest.fixture(scope="module")
def made_buckets() -> dict[str, str]:
    return {}


@pytest.fixture
def second(store: Store, made_buckets: dict[str, str], tmp_path: Path) -> Iterator[Store]:
    """Another, empty bucket."""
    name = made_buckets.setdefault("second", f"test-{uuid.uuid4().hex[:20]}")
    init_bucket(store.bucket.client, name, create=True)
    other = Store(store.bucket.client, name, tmp_path / "cache-second", part_bytes=5 << 20)
    yield other
    for key in list(other.bucket.keys("")):
        other.bucket.delete(key)


def test_an_engine_and_its_alias_are_copied(
    store: Store, second: Store, publish: Publish, tmp_path: Path
) -> None:
    manifest = publish("org/model")
    done = mirror_engine(store, second, manifest, [PROD], by="alice")
    size_bytes = sum(ref.size_bytes for ref in manifest.core.files)
    assert (done.published, done.copied_bytes, done.aliases) == (True, size_bytes, (PROD,))
    found = second.get_manifest(manifest.engine_id)
    assert found == manifest
    second.materialise(found.core.files, tmp_path / "engine", use_cache=False)
    assert describe_directory(tmp_path / "engine") == list(manifest.core.files)
    pointer = second.get_alias(PROD)
    assert pointer
    assert (pointer.engine_id, pointer.by) == (manifest.engine_id, "alice")
    assert list(store.cache.root.glob(".mirror-*")) == []


def test_a_second_time_copies_nothing(store: Store, second: Store, publish: Publish) -> None:
    manifest = publish("org/model")
    mirror_engine(store, second, manifest, [PROD], by="alice")
    again = mirror_engine(store, second, manifest, [PROD], by="alice")
    assert (again.published, again.copied_files, again.aliases) == (False, 0, ())


def test_only_what_is_missing_is_copied(
    store: Store,
    second: Store,
    make_files: Callable[..., tuple[Path, list[FileRef]]],
    make_manifest: Callable[..., Manifest],
) -> None:
    directory, files = make_files(engine=b"x" * 1000, config=b"{}")
    manifest = store.publish(make_manifest(files), directory)
    second.put_file(directory / "config", files[0])
    done = mirror_engine(store, second, manifest, by="alice")
    assert (done.copied_files, done.copied_bytes, done.present_bytes) == (1, 1000, 2)


def test_a_damaged_engine_does_not_become_visible_there(
    store: Store, second: Store, publish: Publish, s3: Any
) -> None:
    manifest = publish("org/model")
    ref = manifest.core.files[0]
    s3.client.put_object(
        Bucket=s3.bucket,
        Key=blob_key(ref.sha256),
        Body=bytes(ref.size_bytes),
        Metadata={"sha256": ref.sha256},
    )
    with pytest.raises(BlobCorruptError):
        mirror_engine(store, second, manifest, [PROD], by="alice")
    assert list(second.bucket.keys("")) == []


def test_a_bucket_is_no_mirror_of_itself(store: Store, publish: Publish) -> None:
    with pytest.raises(SameBucketError):
        mirror_engine(store, store, publish("org/model"), by="alice")


def rules(s3: Any, bucket: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = s3.client.get_bucket_lifecycle_configuration(Bucket=bucket)[
        "Rules"
    ]
    return found


def test_init_makes_a_bucket_once_and_keeps_the_rules_of_others(store: Store, s3: Any) -> None:
    client, name = store.bucket.client, f"test-{uuid.uuid4().hex[:20]}"
    from trtforge.store.client import BucketMissingError

    with pytest.raises(BucketMissingError):
        init_bucket(client, name)
    first = init_bucket(client, name, create=True)
    assert (first.created, first.lifecycle, first.conditional_writes) == (True, "set", "")
    again = init_bucket(client, name, create=True)
    assert (again.created, again.lifecycle) == (False, "was set")

    theirs = {
        "ID": "theirs",
        "Status": "Enabled",
        "Filter": {"Prefix": "tmp/"},
        "Expiration": {"Days": 30},
    }
    s3.client.put_bucket_lifecycle_configuration(
        Bucket=name, LifecycleConfiguration={"Rules": [theirs]}
    )
    assert init_bucket(client, name).lifecycle == "set"
    assert init_bucket(client, name, days=3).lifecycle == "set"
    by_id = {rule["ID"]: rule for rule in rules(s3, name)}
    assert set(by_id) == {"theirs", RULE_ID}
    assert by_id["theirs"]["Expiration"]["Days"] == 30
    assert by_id[RULE_ID]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 3}
    s3.client.delete_bucket(Bucket=name)


def test_its_benchmarks_and_their_raw_data_come_along(
    store: Store, second: Store, publish: Publish
) -> None:
    manifest = publish("org/model")
    store.put_run_file("bench-1", "requests.jsonl", b"{}")
    record = BenchmarkRecord(
        engine_id=manifest.engine_id,
        run_id="bench-1",
        device="NVIDIA H200",
        workload="chat",
        boundary="in process",
        points=(),
        machine={},
        by="alice",
    )
    Benchmarks(store.bucket).put(record)
    for _ in range(2):
        mirror_engine(store, second, manifest, by="alice")
    assert Benchmarks(second.bucket).of(manifest.engine_id) == [record]
    assert second.get_run_file("bench-1", "requests.jsonl") == b"{}"
