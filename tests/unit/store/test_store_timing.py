"""The newest timing cache of a toolchain comes back; a broken one is done without.

Of builders at once none loses what it found out.
"""

import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trtforge.engines.aoti.compile_cache import CompileCache, CompileCacheFormat, Entry
from trtforge.files import FileRef
from trtforge.store import Store
from trtforge.store.layout import blob_key, timing_key
from trtforge.store.records import UnknownFormatError
from trtforge.store.timing import TimingHead

TOOLCHAIN = "trtllm-1.2.1"
FORMAT = CompileCacheFormat()
MERGER = Path(__file__).with_name("merger.py")


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


@pytest.fixture
def head(s3: Any) -> Callable[[], TimingHead]:
    """The head as it lies in the bucket."""

    def read() -> TimingHead:
        answer = s3.client.get_object(Bucket=s3.bucket, Key=timing_key(TOOLCHAIN))
        return TimingHead.model_validate_json(answer["Body"].read())

    return read


def compiled(path: Path, *graphs: str) -> Path:
    """A cache file of the aoti backend."""
    CompileCache({graph: Entry(graph, 1.0, {"a.so": graph.encode()}) for graph in graphs}).save(
        path
    )
    return path


def graphs_in(store: Store, tmp_path: Path) -> set[str]:
    dest = tmp_path / "newest.cache"
    dest.unlink(missing_ok=True)
    assert store.get_timing_cache(TOOLCHAIN, dest)
    with zipfile.ZipFile(dest) as archive:
        return set(json.loads(archive.read("index.json"))["entries"])


class TestMerging:
    def test_what_another_builder_added_meanwhile_is_kept(
        self, store: Store, head: Callable[[], TimingHead], tmp_path: Path
    ) -> None:
        for name in ("prefill", "decode"):
            file = compiled(tmp_path / f"{name}.cache", name)
            store.timing.put(TOOLCHAIN, file, entries=1, cache_format=FORMAT)
        assert graphs_in(store, tmp_path) == {"prefill", "decode"}
        assert (head().entries, head().previous) == (2, ())

    def test_the_one_a_build_started_from_is_replaced(
        self, store: Store, head: Callable[[], TimingHead], tmp_path: Path
    ) -> None:
        first = store.timing.put(TOOLCHAIN, compiled(tmp_path / "a", "old"), cache_format=FORMAT)
        # Its compiler dropped the oldest: that must not come back by a merge.
        store.timing.put(
            TOOLCHAIN,
            compiled(tmp_path / "b", "new"),
            started_from=first.sha256,
            cache_format=FORMAT,
        )
        assert graphs_in(store, tmp_path) == {"new"}
        assert head().previous == ()

    def test_four_processes_at_once_lose_nothing(
        self, store: Store, s3: Any, tmp_path: Path
    ) -> None:
        mergers = []
        for index in range(4):
            asked = {
                "endpoint_url": s3.endpoint_url,
                "access_key_id": s3.access_key_id,
                "secret_access_key": s3.secret_access_key,
                "bucket": s3.bucket,
                "home": str(tmp_path / f"home-{index}"),
                "toolchain": TOOLCHAIN,
                "graphs": [f"{index}-{n}" for n in range(5)],
            }
            mergers.append(
                subprocess.Popen(
                    [sys.executable, str(MERGER), json.dumps(asked)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            for merger in mergers:
                assert merger.stdout
                assert merger.stdout.readline() == "ready\n"
            for merger in mergers:
                assert merger.stdin
                merger.stdin.write("go\n")
                merger.stdin.flush()
            assert [merger.wait(60) for merger in mergers] == [0] * 4
        finally:
            for merger in mergers:
                merger.kill()
                merger.communicate()
        assert graphs_in(store, tmp_path) == {f"{i}-{n}" for i in range(4) for n in range(5)}

    @pytest.mark.parametrize("how", ["deleted", "damaged", "rubbish"])
    def test_a_broken_one_is_replaced_and_not_merged(
        self,
        store: Store,
        s3: Any,
        keep: Callable[[bytes], FileRef],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        how: str,
    ) -> None:
        blob = {"Bucket": s3.bucket, "Key": blob_key(keep(b"rubbish").sha256)}
        if how == "deleted":
            s3.client.delete_object(**blob)
        elif how == "damaged":
            s3.client.put_object(**blob, Body=b"RUBBISH")
        with caplog.at_level(logging.WARNING):
            file = compiled(tmp_path / "mine.cache", "decode")
            store.timing.put(TOOLCHAIN, file, cache_format=FORMAT)
        assert "timing cache" in caplog.text
        assert graphs_in(store, tmp_path) == {"decode"}


class TestFormatsThatCannotBeMerged:
    def test_the_last_one_wins_and_the_others_stay_known(
        self, head: Callable[[], TimingHead], keep: Callable[[bytes], FileRef]
    ) -> None:
        refs = [keep(b"tactics %d" % n) for n in range(12)]
        assert head().sha256 == refs[-1].sha256
        assert [blob.sha256 for blob in head().previous] == [r.sha256 for r in refs[-2:-10:-1]]

    def test_one_that_becomes_the_newest_again_is_not_its_own_predecessor(
        self, head: Callable[[], TimingHead], keep: Callable[[bytes], FileRef]
    ) -> None:
        first, second = keep(b"first"), keep(b"second")
        assert keep(b"first") == first
        assert [blob.sha256 for blob in head().previous] == [second.sha256]

    def test_what_was_set_aside_stays_known_when_the_newest_grows(
        self,
        store: Store,
        head: Callable[[], TimingHead],
        keep: Callable[[bytes], FileRef],
        tmp_path: Path,
    ) -> None:
        first, second = keep(b"first"), keep(b"second")
        (tmp_path / "grown").write_bytes(b"second and more")
        store.timing.put(TOOLCHAIN, tmp_path / "grown", started_from=second.sha256)
        assert [blob.sha256 for blob in head().previous] == [first.sha256]


def test_a_head_of_a_newer_trtforge_is_left_alone(
    keep: Callable[[bytes], FileRef], s3: Any
) -> None:
    newer = {"Bucket": s3.bucket, "Key": timing_key(TOOLCHAIN)}
    s3.client.put_object(**newer, Body=b'{"format": 2}')
    with pytest.raises(UnknownFormatError):
        keep(b"tactics")
    assert s3.client.get_object(**newer)["Body"].read() == b'{"format": 2}'
