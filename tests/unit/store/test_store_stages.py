"""A stage is done once its record and all its outputs are in the store, and is done once."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from trtforge.files import FileRef
from trtforge.store import StageResult, Store
from trtforge.store.layout import blob_key, stage_key
from trtforge.store.records import RecordInvalidError, UnknownFormatError

KEY = "a" * 64


def result(*outputs: FileRef, seconds: float = 1.0, key: str = KEY) -> StageResult:
    return StageResult(
        stage="compile",
        key=key,
        inputs={"checkpoint": "b" * 64},
        outputs=outputs,
        facts={"engine_bytes": 12},
        seconds=seconds,
    )


def test_a_finished_stage_is_found_on_any_machine(open_store: Callable[..., Store]) -> None:
    here = open_store()
    assert here.get_stage("compile", KEY) is None
    done = result(here.put_bytes(b"engine", "engine"))
    assert here.put_stage(done) == done
    assert open_store("another").get_stage("compile", KEY) == done
    assert here.get_stage("convert", KEY) is None


def test_of_two_builders_the_first_one_wins(store: Store) -> None:
    first = result(store.put_bytes(b"engine", "engine"), seconds=1.0)
    second = result(store.put_bytes(b"ENGINE", "engine"), seconds=2.0)
    assert store.put_stage(first) == first
    assert store.put_stage(second) == first
    assert store.put_stage(first) == first
    assert store.get_stage("compile", KEY) == first


def test_builders_that_finish_together_get_the_same_record(store: Store) -> None:
    output = store.put_bytes(b"engine", "engine")
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda i: store.put_stage(result(output, seconds=i)), range(8)))
    assert set(kept_seconds := [k.seconds for k in kept]) == {kept_seconds[0]}
    assert store.get_stage("compile", KEY) == kept[0]


def test_a_forced_rebuild_replaces_the_record(store: Store) -> None:
    output = store.put_bytes(b"engine", "engine")
    store.put_stage(result(output, seconds=1.0))
    rebuilt = result(output, seconds=2.0)
    assert store.put_stage(rebuilt, replace=True) == rebuilt
    assert store.get_stage("compile", KEY) == rebuilt


def test_a_stage_whose_output_is_gone_is_not_done_and_can_be_done_again(
    store: Store, s3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lost = store.put_bytes(b"engine", "engine")
    store.put_stage(result(lost, store.put_bytes(b"{}", "config.json")))
    s3.client.delete_object(Bucket=s3.bucket, Key=blob_key(lost.sha256))
    with caplog.at_level(logging.WARNING):
        assert store.get_stage("compile", KEY) is None
    assert "lacks 1 of its 2 outputs, such as engine" in caplog.text
    again = result(store.put_bytes(b"not the same bytes", "engine"))
    assert store.put_stage(again) == again
    assert store.get_stage("compile", KEY) == again


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"{", RecordInvalidError, "is not JSON"),
        (b"[]", RecordInvalidError, "is not a JSON object"),
        (b'{"format": 2}', UnknownFormatError, "format = 2"),
        (b'{"stage": "compile"}', UnknownFormatError, "format = None"),
        (b'{"format": 1, "stage": "compile"}', RecordInvalidError, "damaged at key"),
    ],
)
def test_a_record_that_cannot_be_read_is_an_error_that_names_it(
    store: Store, s3: Any, data: bytes, error: type[Exception], message: str
) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key=stage_key("compile", KEY), Body=data)
    with pytest.raises(error, match=message) as caught:
        store.get_stage("compile", KEY)
    assert f"s3://{s3.bucket}/stages/compile/{KEY}.json" in str(caught.value)


def test_a_record_under_a_wrong_key_is_refused(store: Store, s3: Any) -> None:
    other = result(key="c" * 64)
    s3.client.put_object(Bucket=s3.bucket, Key=stage_key("compile", KEY), Body=other.to_bytes())
    with pytest.raises(RecordInvalidError, match="another key"):
        store.get_stage("compile", KEY)


def test_a_record_that_names_files_outside_its_directory_is_refused(store: Store, s3: Any) -> None:
    data = result(FileRef("engine", 1, KEY)).to_bytes().replace(b'"engine"', b'"../../engine"')
    s3.client.put_object(Bucket=s3.bucket, Key=stage_key("compile", KEY), Body=data)
    with pytest.raises(RecordInvalidError, match="outside its directory"):
        store.get_stage("compile", KEY)


def test_files_of_a_run_are_kept(store: Store, s3: Any) -> None:
    address = store.put_run_file("run-1", "bench/raw.jsonl", b"{}\n")
    assert address == f"s3://{s3.bucket}/runs/run-1/bench/raw.jsonl"
    stored = s3.client.get_object(Bucket=s3.bucket, Key="runs/run-1/bench/raw.jsonl")
    assert stored["Body"].read() == b"{}\n"
