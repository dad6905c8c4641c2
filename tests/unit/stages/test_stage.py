"""How every stage runs: found by its key, or made once, stored and recorded."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from trtforge.files import describe_directory
from trtforge.progress import OnProgress, Progress, StageEvent, listening
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage, stage_key
from trtforge.store import StageResult, Store
from trtforge.store.leases import Leases

INPUTS: dict[str, Any] = {"weights": "3f", "dtype": "bfloat16"}
KEY = stage_key("convert", INPUTS)


class Converter:
    """A stage that writes one file, different each time, and remembers where it worked."""

    def __init__(self, *, slow_s: float = 0.0, fails: Exception | None = None) -> None:
        self.calls: list[Path] = []
        self._slow_s = slow_s
        self._fails = fails

    def __call__(self, scratch: Path, on_progress: OnProgress) -> Made:
        assert list(scratch.iterdir()) == []
        self.calls.append(scratch)
        (scratch / "rank0.bin").write_bytes(b"weights, take %d" % len(self.calls))
        on_progress(Progress("writing", 1, 1, "steps"))
        time.sleep(self._slow_s)
        if self._fails:
            raise self._fails
        return Made(scratch, describe_directory(scratch), {"take": len(self.calls)})


def run(shop: Workshop, make: Converter, **inputs: Any) -> StageOutcome:
    return run_stage(shop, "convert", {**INPUTS, **inputs}, make, describe)


def describe(result: StageResult) -> str:
    return f"take {result.facts['take']}"


def scratch_left(shop: Workshop) -> list[Path]:
    return [path for path in shop.work_root.iterdir() if path.is_dir()]


def bytes_of(shop: Workshop, outcome: StageOutcome, tmp_path: Path) -> bytes:
    shop.store.materialise(outcome.result.outputs, tmp_path / "out", use_cache=False)
    return (tmp_path / "out" / "rank0.bin").read_bytes()


def test_what_the_store_lacks_is_made_uploaded_and_recorded(shop: Workshop, tmp_path: Path) -> None:
    make = Converter()
    outcome = run(shop, make)
    assert not outcome.hit
    assert outcome.detail == "take 1"
    assert len(make.calls) == 1
    record = shop.store.get_stage("convert", KEY)
    assert record == outcome.result
    assert record.inputs == INPUTS
    assert record.facts["uploaded_bytes"] == len(b"weights, take 1")
    assert bytes_of(shop, outcome, tmp_path) == b"weights, take 1"
    assert scratch_left(shop) == []


def test_what_the_store_has_is_not_made_again(shop: Workshop) -> None:
    first = run(shop, Converter())
    again = Converter()
    outcome = run(shop, again)
    assert outcome.hit
    assert outcome.result == first.result
    assert again.calls == []


@pytest.mark.parametrize("other", [{"weights": "40"}, {"dtype": "float16"}, {"extra": None}])
def test_another_input_is_another_stage(shop: Workshop, other: dict[str, Any]) -> None:
    run(shop, Converter())
    assert not run(shop, Converter(), **other).hit


def test_a_record_whose_outputs_are_gone_counts_as_not_done(
    shop: Workshop, s3: Any, tmp_path: Path
) -> None:
    first = run(shop, Converter())
    digest = first.result.outputs[0].sha256
    s3.client.delete_object(Bucket=s3.bucket, Key=f"blobs/sha256/{digest[:2]}/{digest}")
    outcome = run(shop, Converter())
    assert not outcome.hit
    assert bytes_of(shop, outcome, tmp_path) == b"weights, take 1"


def test_a_stage_that_fails_leaves_nothing(shop: Workshop, stored: Callable[[], set[str]]) -> None:
    make = Converter(fails=RuntimeError("no room"))
    with pytest.raises(RuntimeError, match="no room"):
        run(shop, make)
    assert stored() == set()
    assert scratch_left(shop) == []
    assert not run(shop, Converter()).hit


def test_outputs_that_are_not_what_their_digests_say_are_not_recorded(
    shop: Workshop, stored: Callable[[], set[str]]
) -> None:
    def make(scratch: Path, _: OnProgress) -> Made:
        (scratch / "rank0.bin").write_bytes(b"right")
        files = describe_directory(scratch)
        (scratch / "rank0.bin").write_bytes(b"wrong")
        return Made(scratch, files)

    with pytest.raises(Exception, match=r"rank0\.bin"):
        run_stage(shop, "convert", INPUTS, make, lambda _: "")
    assert stored() == set()


def test_force_makes_again_and_replaces(shop: Workshop) -> None:
    make = Converter()
    run(shop, make)
    forced = run(replace(shop, force=True), make)
    assert not forced.hit
    assert forced.detail == "take 2"
    found = run(shop, make)
    assert found.hit
    assert found.result == forced.result


def test_two_runs_at_once_make_it_once(shop: Workshop) -> None:
    make = Converter(slow_s=0.3)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: run(shop, make), range(4)))
    assert len(make.calls) == 1
    assert sorted(outcome.hit for outcome in outcomes) == [False, True, True, True]
    assert all(outcome.result == outcomes[0].result for outcome in outcomes)


def test_the_events_of_a_stage_tell_its_story(shop: Workshop) -> None:
    events: list[StageEvent] = []

    def kinds() -> list[str]:
        told: list[str] = [event.kind for event in events]
        assert {event.stage for event in events} == {"convert"}
        assert (events[-1].seconds or 0.0) > 0
        return told

    with listening(events.append):
        run(shop, Converter())
        first, last = kinds()[0], kinds()[-1]
        assert (first, last) == ("started", "done")
        assert set(kinds()[1:-1]) == {"progress"}
        events.clear()
        run(shop, Converter())
        assert kinds() == ["started", "hit"]
        events.clear()
        with pytest.raises(RuntimeError):
            run(shop, Converter(fails=RuntimeError("no room")), dtype="float16")
        assert kinds() == ["started", "progress", "failed"]
        assert events[-1].message == "no room"


def test_what_a_killed_run_of_the_same_stage_left_is_not_built_upon(shop: Workshop) -> None:
    leftover = shop.work_root / f"convert-{KEY[:16]}"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"a")
    run(shop, Converter())  # asserts that it starts in an empty directory
    assert scratch_left(shop) == []


def test_what_killed_runs_of_other_stages_left_goes_after_a_day(shop: Workshop) -> None:
    shop.work_root.mkdir()
    ages_h = {"pull-dead": 25, "compile-recent": 23, "compile-working": 48}
    for name, hours in ages_h.items():
        directory = shop.work_root / name
        directory.mkdir()
        (directory / "half").write_bytes(b"a")
        then = time.time() - hours * 3600
        os.utime(directory, (then, then))
    holding, done = threading.Event(), threading.Event()

    def work_on() -> None:
        with FileLock(shop.work_root / "compile-working.lock"):
            holding.set()
            done.wait(30)

    worker = threading.Thread(target=work_on)
    worker.start()
    try:
        assert holding.wait(30)
        run(shop, Converter())
    finally:
        done.set()
        worker.join()
    assert {path.name for path in scratch_left(shop)} == {"compile-recent", "compile-working"}


@pytest.fixture
def elsewhere(shop: Workshop, s3: Any, tmp_path: Path) -> Workshop:
    """Another machine's workshop on the same bucket; both look at a lease ten times a second."""
    other = replace(
        shop,
        store=Store(shop.store.bucket.client, s3.bucket, tmp_path / "other-cache"),
        work_root=tmp_path / "other-work",
        run_id="run-elsewhere",
    )
    for store in (shop.store, other.store):
        store.leases = Leases(store.bucket, poll_s=(0.1, 0.1))
    return other


class Worker(Converter):
    """A converter that goes on when it is told to."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        super().__init__(fails=fails)
        self.working, self.go_on = threading.Event(), threading.Event()

    def __call__(self, scratch: Path, on_progress: OnProgress) -> Made:
        self.working.set()
        assert self.go_on.wait(30)
        return super().__call__(scratch, on_progress)


class TestBuildersOnSeveralMachines:
    def test_a_stage_that_is_being_made_elsewhere_is_waited_for_and_found(
        self, shop: Workshop, elsewhere: Workshop, stored: Callable[[], set[str]]
    ) -> None:
        theirs, mine = Worker(), Converter()
        events: list[StageEvent] = []

        def listen(event: StageEvent) -> None:
            events.append(event)
            if event.progress and event.progress.what.startswith("waiting"):
                theirs.go_on.set()

        with ThreadPoolExecutor(1) as pool, listening(listen):
            other = pool.submit(run, elsewhere, theirs)
            assert theirs.working.wait(30)
            outcome = run(shop, mine)
            assert outcome.hit
            assert outcome.result == other.result().result
        assert mine.calls == []
        waits = {e.progress.what for e in events if e.progress and "waiting" in e.progress.what}
        [line] = waits
        assert "run run-elsewhere" in line
        assert line.endswith("to finish convert")
        assert not any(key.startswith("leases/") for key in stored())

    def test_one_that_fails_elsewhere_is_made_here(
        self, shop: Workshop, elsewhere: Workshop
    ) -> None:
        theirs, mine = Worker(fails=RuntimeError("no room")), Converter()

        def listen(event: StageEvent) -> None:
            if event.progress and event.progress.what.startswith("waiting"):
                theirs.go_on.set()

        with ThreadPoolExecutor(1) as pool, listening(listen):
            other = pool.submit(run, elsewhere, theirs)
            assert theirs.working.wait(30)
            assert not run(shop, mine).hit
            with pytest.raises(RuntimeError, match="no room"):
                other.result()
        assert len(mine.calls) == 1

    def test_a_forced_build_waits_too_and_makes_it_again(
        self, shop: Workshop, elsewhere: Workshop
    ) -> None:
        theirs, mine = Worker(), Converter()

        def listen(event: StageEvent) -> None:
            if event.progress and event.progress.what.startswith("waiting"):
                assert mine.calls == []
                theirs.go_on.set()

        with ThreadPoolExecutor(1) as pool, listening(listen):
            other = pool.submit(run, elsewhere, theirs)
            assert theirs.working.wait(30)
            forced = run(replace(shop, force=True), mine)
            assert not other.result().hit
        assert not forced.hit
        assert shop.store.get_stage("convert", KEY) == forced.result

    def test_the_time_spent_waiting_is_not_the_time_the_stage_takes(
        self, shop: Workshop, elsewhere: Workshop
    ) -> None:
        theirs = Worker()

        def listen(event: StageEvent) -> None:
            if event.progress and event.progress.what.startswith("waiting"):
                time.sleep(0.5)
                theirs.go_on.set()

        with ThreadPoolExecutor(1) as pool, listening(listen):
            other = pool.submit(run, elsewhere, theirs)
            assert theirs.working.wait(30)
            mine = run(replace(shop, force=True), Converter())
            other.result()
        assert mine.seconds - mine.result.seconds >= 0.5


def test_a_build_of_the_same_home_is_waited_for_and_told_so(shop: Workshop) -> None:
    first, told = Worker(), []

    def listen(event: StageEvent) -> None:
        if event.progress and event.progress.what.startswith("waiting"):
            told.append(event.progress.what)
            first.go_on.set()

    with ThreadPoolExecutor(1) as pool, listening(listen):
        other = pool.submit(run, shop, first)
        assert first.working.wait(30)
        assert run(shop, Converter()).hit
        other.result()
    assert told == ["waiting for a build of this home to finish convert"]
