"""The newest timing cache of a toolchain comes back; a broken one is done without."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef
from trtforge.store import Store
from trtforge.store.layout import blob_key, timing_key

TOOLCHAIN = "trtllm-1.2.1"


@pytest.fixture
def keep(store: Store, tmp_path: Path) -> Callable[[bytes], FileRef]:
    """Makes the given bytes the newest timing cache."""

    def keep_bytes(data: bytes) -> FileRef:
        (tmp_path / "model.cache").write_bytes(data)
        return store.put_timing_cache(TOOLCHAIN, tmp_path / "model.cache")

    return keep_bytes


def test_the_last_writer_wins(
    open_store: Callable[..., Store], keep: Callable[[bytes], FileRef], tmp_path: Path
) -> None:
    other = open_store("another")
    dest = tmp_path / "out" / "model.cache"
    assert other.get_timing_cache(TOOLCHAIN, dest) is None
    keep(b"first")
    assert keep(b"second") == keep(b"second") == other.get_timing_cache(TOOLCHAIN, dest)
    assert dest.read_bytes() == b"second"
    assert other.get_timing_cache("another-toolchain", dest) is None


def test_writers_at_once_leave_one_that_works(
    open_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = open_store()

    def write(index: int) -> str:
        path = tmp_path / f"{index}.cache"
        path.write_bytes(bytes([index]))
        return store.put_timing_cache(TOOLCHAIN, path, entries=index).sha256

    with ThreadPoolExecutor(6) as pool:
        written = list(pool.map(write, range(6)))
    ref = open_store("another").get_timing_cache(TOOLCHAIN, tmp_path / "out")
    assert ref
    assert ref.sha256 in written


@pytest.mark.parametrize("how", ["deleted", "damaged", "no JSON", "newer format", "no digest"])
def test_a_broken_one_costs_time_and_not_the_build(
    open_store: Callable[..., Store],
    keep: Callable[[bytes], FileRef],
    s3: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    ref = keep(b"tactics")
    blob = {"Bucket": s3.bucket, "Key": blob_key(ref.sha256)}
    head = {"Bucket": s3.bucket, "Key": timing_key(TOOLCHAIN)}
    if how == "deleted":
        s3.client.delete_object(**blob)
    elif how == "damaged":
        s3.client.put_object(**blob, Body=b"TACTICS", Metadata={"sha256": ref.sha256})
    elif how == "no JSON":
        s3.client.put_object(**head, Body=b"\0")
    elif how == "newer format":
        s3.client.put_object(**head, Body=b'{"format": 2}')
    else:
        stored = s3.client.get_object(**head)["Body"].read()
        s3.client.put_object(**head, Body=stored.replace(ref.sha256.encode(), b"../x"))
    with caplog.at_level(logging.WARNING):
        assert open_store("another").get_timing_cache(TOOLCHAIN, tmp_path / "out") is None
    assert "building without a timing cache" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_damaged_head_is_replaced_by_the_next_build(
    store: Store, keep: Callable[[bytes], FileRef], s3: Any, tmp_path: Path
) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key=timing_key(TOOLCHAIN), Body=b"\0")
    assert keep(b"tactics") == store.get_timing_cache(TOOLCHAIN, tmp_path / "model.cache")
