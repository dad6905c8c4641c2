"""A download goes on where it was, and ends with the right bytes or with an error."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef
from trtforge.progress import Progress
from trtforge.store import Store
from trtforge.store.layout import blob_key
from trtforge.store.partial import resumable_file
from trtforge.store.transfer import BlobCorruptError, BlobMissingError

MIB = 1 << 20
PART = 5 * MIB
WriteFile = Callable[[str, bytes], tuple[Path, FileRef]]
Hooks = Callable[[str, Callable[..., Any]], None]


@pytest.fixture
def ranges(hooks: Hooks) -> list[str]:
    """The ranges that are asked for."""
    asked: list[str] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        asked.append(params.get("Range", "whole"))

    hooks("before-parameter-build.s3.GetObject", note)
    return asked


def leave(store: Store, ref: FileRef, data: bytes) -> None:
    """What a download that was interrupted left in the cache."""
    with suppress(KeyboardInterrupt), store.cache.resuming(ref) as stream:
        assert stream is not None
        stream.write(data)
        raise KeyboardInterrupt


def in_cache(store: Store) -> list[Path]:
    return [path for path in store.cache.root.rglob("*") if path.is_file()]


def test_only_what_is_missing_is_fetched(
    store: Store, write_file: WriteFile, ranges: list[str], tmp_path: Path
) -> None:
    data = os.urandom(17 * MIB)
    path, ref = write_file("engine", data)
    store.put_file(path, ref)
    leave(store, ref, data[: 8 * MIB])
    seen: list[Progress] = []
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back", seen.append)
    assert (tmp_path / "back").read_bytes() == data
    assert sorted(ranges) == [
        f"bytes={13 * MIB}-{17 * MIB - 1}",
        f"bytes={8 * MIB}-{13 * MIB - 1}",
    ]
    assert [progress.done for progress in seen] == [8 * MIB, 13 * MIB, 17 * MIB]
    assert in_cache(store) == [store.cache.path(ref.sha256)]


def test_what_lies_behind_a_hole_is_fetched_again(
    store: Store, write_file: WriteFile, ranges: list[str], tmp_path: Path
) -> None:
    data = os.urandom(17 * MIB)
    path, ref = write_file("engine", data)
    store.put_file(path, ref)
    with suppress(KeyboardInterrupt), store.cache.resuming(ref) as stream:
        assert stream is not None
        stream.write(data[: 4 * MIB])
        stream.seek(10 * MIB)
        stream.write(data[10 * MIB : 15 * MIB])
        raise KeyboardInterrupt
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert sorted(ranges) == [
        f"bytes={14 * MIB}-{17 * MIB - 1}",
        f"bytes={4 * MIB}-{9 * MIB - 1}",
        f"bytes={9 * MIB}-{14 * MIB - 1}",
    ]


@pytest.mark.parametrize("size_bytes", [3 * MIB, 17 * MIB])
@pytest.mark.parametrize("what", ["other bytes", "all of it", "too much"])
def test_whatever_was_left_the_bytes_come_out_right(
    store: Store, write_file: WriteFile, tmp_path: Path, size_bytes: int, what: str
) -> None:
    data = os.urandom(size_bytes)
    path, ref = write_file("engine", data)
    store.put_file(path, ref)
    left = {"other bytes": bytes(2 * MIB), "all of it": data, "too much": data + b"x"}
    leave(store, ref, left[what])
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_nothing_worthless_is_left(store: Store, s3: Any, tmp_path: Path) -> None:
    ref = FileRef("engine", 6, "0" * 64)
    with pytest.raises(BlobMissingError):
        store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert in_cache(store) == []
    s3.client.put_object(Bucket=s3.bucket, Key=blob_key(ref.sha256), Body=b"EnGiNe")
    with pytest.raises(BlobCorruptError):
        store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert in_cache(store) == []


@pytest.mark.parametrize("size_bytes", [16 * MIB, 18 * MIB])
def test_a_large_blob_of_the_wrong_size_is_found_out(
    store: Store, s3: Any, tmp_path: Path, size_bytes: int
) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key=blob_key("0" * 64), Body=bytes(size_bytes))
    with pytest.raises(BlobCorruptError):
        store.get_file("0" * 64, 17 * MIB, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_object_that_is_replaced_between_ranges_is_noticed(
    store: Store, s3: Any, write_file: WriteFile, tmp_path: Path
) -> None:
    data = os.urandom(42 * MIB)
    path, ref = write_file("engine", data)
    blob = {"Bucket": s3.bucket, "Key": blob_key(ref.sha256)}
    s3.client.put_object(**blob, Body=bytes(len(data)))
    replaced: list[bool] = []

    def replace(_: Progress) -> None:
        if not replaced:
            replaced.append(True)
            s3.client.put_object(**blob, Body=data)

    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back", replace)
    assert replaced
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_two_downloads_of_one_blob_into_one_cache_share_the_work(
    open_store: Callable[..., Store], write_file: WriteFile, ranges: list[str], tmp_path: Path
) -> None:
    path, ref = write_file("engine", os.urandom(17 * MIB))
    open_store().put_file(path, ref)
    stores = [open_store(cache_dir=tmp_path / "shared") for _ in range(2)]
    threads = [
        threading.Thread(
            target=store.get_file, args=(ref.sha256, ref.size_bytes, tmp_path / f"back-{number}")
        )
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ranges) == 4
    for number in range(2):
        assert (tmp_path / f"back-{number}").read_bytes() == path.read_bytes()


def test_the_next_writer_goes_on_with_what_the_last_one_left(tmp_path: Path) -> None:
    final = tmp_path / "file"
    with suppress(RuntimeError), resumable_file(final) as stream:
        assert stream is not None
        stream.write(b"first, ")
        raise RuntimeError
    assert not final.exists()
    with resumable_file(final, 0o444) as stream:
        assert stream is not None
        assert stream.read() == b"first, "
        stream.write(b"second")
    assert final.read_bytes() == b"first, second"
    assert final.stat().st_mode & 0o777 == 0o444
    assert list(tmp_path.iterdir()) == [final]


def test_a_second_writer_waits_and_may_find_nothing_to_do(tmp_path: Path) -> None:
    final = tmp_path / "file"
    found: list[object] = []

    def second() -> None:
        with resumable_file(final, wanted=lambda: not final.exists()) as stream:
            found.append(stream)

    with resumable_file(final) as stream:
        assert stream is not None
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.05)
        assert not found
        stream.write(b"whole")
    waiting.join()
    assert found == [None]
    assert final.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [final]
