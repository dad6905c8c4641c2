"""A stage that a builder elsewhere works on is waited for; a dead builder's is taken over."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from trtforge.store import StageResult, Store
from trtforge.store.layout import lease_key
from trtforge.store.lease_record import Holder, LeaseRecord
from trtforge.store.leases import Leases
from trtforge.store.records import now

KEY = "a" * 64
LEASE = lease_key("compile", KEY)
BUILDER = Path(__file__).with_name("builder.py")
SOON = (0.05, 0.1)
NEVER_S = 600.0


def nothing() -> None:
    """The record of a stage that nobody has made."""


@pytest.fixture
def leases(store: Store) -> Leases:
    return Leases(store.bucket, ttl_s=NEVER_S, poll_s=SOON)


@pytest.fixture
def stored(s3: Any) -> Callable[[], LeaseRecord | None]:
    """The lease as it lies in the bucket."""

    def read() -> LeaseRecord | None:
        try:
            data = s3.client.get_object(Bucket=s3.bucket, Key=LEASE)["Body"].read()
        except ClientError:
            return None
        return LeaseRecord.model_validate_json(data)

    return read


@pytest.fixture
def plant(s3: Any) -> Callable[..., LeaseRecord]:
    """Puts the lease of a holder on another machine into the bucket."""

    def put(
        token: str = "theirs", ttl_s: float = NEVER_S, clock_h: float = 0.0, renewals: int = 0
    ) -> LeaseRecord:
        record = LeaseRecord(
            stage="compile",
            key=KEY,
            holder=Holder(
                host="gpu-7",
                pid=4711,
                machine="another boot",
                process_started=1,
                run_id="run-5",
                token=token,
            ),
            acquired_at=now() + timedelta(hours=clock_h),
            ttl_s=ttl_s,
            renewals=renewals,
        )
        s3.client.put_object(Bucket=s3.bucket, Key=LEASE, Body=record.to_bytes())
        return record

    return put


@pytest.fixture
def start_builder(s3: Any, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts builders of the same stage as processes."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *, works_s: float = 0.5, ttl_s: float = NEVER_S, elsewhere: bool = False
    ) -> "subprocess.Popen[str]":
        asked = {
            "endpoint_url": s3.endpoint_url,
            "access_key_id": s3.access_key_id,
            "secret_access_key": s3.secret_access_key,
            "bucket": s3.bucket,
            "home": str(tmp_path / f"home-{len(started)}"),
            "stage_key": KEY,
            "made": str(tmp_path / "made"),
            "works_s": works_s,
            "ttl_s": ttl_s,
            "elsewhere": elsewhere,
        }
        command = [sys.executable, str(BUILDER), json.dumps(asked)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def says(builder: "subprocess.Popen[str]") -> str:
    """The next word of a builder."""
    assert builder.stdout
    return builder.stdout.readline().strip()


def times_made(tmp_path: Path) -> int:
    return len((tmp_path / "made").read_text().splitlines())


class TestOneHolder:
    def test_the_lease_names_its_holder_while_the_stage_is_made_and_goes_with_it(
        self, leases: Leases, stored: Callable[[], LeaseRecord | None]
    ) -> None:
        with leases.claimed("compile", KEY, nothing, run_id="run-1") as found:
            assert found is None
            lease = stored()
            assert lease
            assert (lease.stage, lease.key, lease.ttl_s) == ("compile", KEY, NEVER_S)
            assert (lease.holder.pid, lease.holder.run_id) == (os.getpid(), "run-1")
        assert stored() is None

    @pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_it_goes_however_the_work_ends(
        self, leases: Leases, stored: Callable[[], Any], end: type[BaseException]
    ) -> None:
        with pytest.raises(end), leases.claimed("compile", KEY, nothing):
            raise end
        assert stored() is None
        assert "lease" not in {thread.name for thread in threading.enumerate()}

    def test_a_stage_recorded_meanwhile_is_found_and_no_lease_stays(
        self, leases: Leases, stored: Callable[[], Any]
    ) -> None:
        with leases.claimed("compile", KEY, lambda: "the record") as found:
            assert found == "the record"
            assert stored() is None

    def test_stages_do_not_wait_for_each_other(self, leases: Leases) -> None:
        with (
            leases.claimed("compile", KEY, nothing),
            leases.claimed("compile", "b" * 64, nothing),
            leases.claimed("convert", KEY, nothing),
        ):
            pass


class TestWaiting:
    def test_of_builders_at_once_one_makes_it_and_the_others_find_it(
        self, open_store: Callable[..., Store]
    ) -> None:
        made: list[str] = []

        def build(machine: str) -> str:
            leases = Leases(open_store(machine).bucket, poll_s=SOON)
            with leases.claimed("compile", KEY, lambda: made[-1] if made else None) as found:
                if found is None:
                    time.sleep(0.3)
                    made.append(machine)
                return found or made[-1]

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(build, ["one", "two", "three", "four"]))
        assert len(made) == 1
        assert results == made * 4

    def test_who_is_waited_for_is_told_to_people(
        self, leases: Leases, plant: Callable[..., LeaseRecord], s3: Any
    ) -> None:
        plant()
        told: list[str] = []

        def on_wait(line: str) -> None:
            told.append(line)
            if len(told) == 2:
                s3.client.delete_object(Bucket=s3.bucket, Key=LEASE)

        with leases.claimed("compile", KEY, nothing, on_wait=on_wait) as found:
            assert found is None
        assert len(told) == 2
        assert told[0] == told[1]
        assert told[0].startswith("waiting for process 4711 of run run-5 on gpu-7 (since 20"), told
        assert told[0].endswith("UTC by its clock) to finish compile")

    def test_a_forced_build_waits_too_and_then_makes_it_again(
        self, leases: Leases, stored: Callable[[], LeaseRecord | None]
    ) -> None:
        holding, done, order = threading.Event(), threading.Event(), []

        def work() -> None:
            with leases.claimed("compile", KEY, nothing):
                holding.set()
                done.wait(30)
                order.append("first")

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(work)
            assert holding.wait(30)
            with leases.claimed("compile", KEY, nothing, on_wait=lambda _: done.set()) as found:
                order.append("forced")
                assert found is None
                lease = stored()
                assert lease
                assert lease.renewals == 0
            first.result()
        assert order == ["first", "forced"]

    def test_two_processes_make_it_once(
        self, start_builder: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
    ) -> None:
        # The first holds the lease for several times as long as it lasts without renewal.
        first = start_builder(works_s=4.0, ttl_s=1.0, elsewhere=True)
        assert says(first) == "claimed"
        second = start_builder(ttl_s=1.0)
        assert [says(second), says(second)] == ["waiting", "found"]
        assert says(first) == "made"
        assert times_made(tmp_path) == 1


class TestDeadHolders:
    def test_one_killed_on_another_machine_is_waited_for_until_its_time_is_over(
        self, start_builder: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
    ) -> None:
        first = start_builder(works_s=NEVER_S, ttl_s=1.5, elsewhere=True)
        assert says(first) == "claimed"
        second = start_builder()
        assert says(second) == "waiting"
        first.kill()
        assert [says(second), says(second)] == ["claimed", "made"]
        assert times_made(tmp_path) == 2

    def test_one_killed_on_this_machine_is_not_waited_for(
        self, start_builder: Callable[..., "subprocess.Popen[str]"]
    ) -> None:
        first = start_builder(works_s=NEVER_S)
        assert says(first) == "claimed"
        first.kill()
        first.wait()
        second = start_builder()
        assert [says(second), says(second)] == ["claimed", "made"]

    def test_a_pid_that_another_process_has_now_is_no_holder(self) -> None:
        here = Holder.here()
        assert not here.is_dead
        assert here.model_copy(update={"process_started": 1}).is_dead
        assert not here.model_copy(update={"process_started": 1, "machine": "another"}).is_dead
        assert not here.model_copy(update={"process_started": 1, "machine": None}).is_dead

    @pytest.mark.parametrize("clock_h", [-1.0, 1.0])
    def test_the_clock_of_the_holder_does_not_matter(
        self, leases: Leases, plant: Callable[..., LeaseRecord], clock_h: float
    ) -> None:
        plant(ttl_s=0.6, clock_h=clock_h)
        beats = 0

        def renew(_: str) -> None:
            nonlocal beats
            if beats < 12:  # well over a second, with looks at most 0.1 s apart
                beats += 1
                plant(ttl_s=0.6, clock_h=clock_h, renewals=beats)

        with leases.claimed("compile", KEY, nothing, on_wait=renew) as found:
            assert found is None
            assert beats == 12

    def test_one_that_died_long_ago_by_the_clock_of_the_server_is_not_waited_for(
        self, store: Store, plant: Callable[..., LeaseRecord]
    ) -> None:
        plant(ttl_s=1.0)
        time.sleep(3.5)
        waits: list[str] = []
        with Leases(store.bucket, poll_s=SOON).claimed(
            "compile", KEY, nothing, on_wait=waits.append
        ) as found:
            assert found is None
        assert waits == []

    @pytest.mark.parametrize("data", [b"\0", b'{"format": 2}', b'{"format": 1}'])
    def test_a_lease_that_cannot_be_read_is_respected_for_the_usual_time(
        self, store: Store, s3: Any, stored: Callable[[], Any], data: bytes
    ) -> None:
        s3.client.put_object(Bucket=s3.bucket, Key=LEASE, Body=data)
        waits: list[str] = []
        leases = Leases(store.bucket, ttl_s=0.5, poll_s=SOON)
        with leases.claimed("compile", KEY, nothing, on_wait=waits.append):
            assert set(waits) == {"waiting for another builder to finish compile"}
        assert stored() is None


class TestLosingIt:
    """The work goes on: a lease saves work, and is not what makes it right."""

    def test_one_that_was_taken_over_is_left_to_the_other(
        self,
        store: Store,
        plant: Callable[..., LeaseRecord],
        stored: Callable[[], Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        leases = Leases(store.bucket, ttl_s=0.2, poll_s=SOON)
        with caplog.at_level(logging.WARNING), leases.claimed("compile", KEY, nothing):
            theirs = plant()
            wait_until(lambda: "another builder took stage compile over" in caplog.text)
        assert stored() == theirs

    def test_one_that_cannot_be_renewed_is_warned_of_once_and_kept_when_it_can(
        self,
        store: Store,
        hooks: Callable[[str, Callable[..., Any]], None],
        stored: Callable[[], LeaseRecord | None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        down = threading.Event()

        def refuse(**_: Any) -> None:
            if down.is_set() and threading.current_thread().name == "lease":
                raise EndpointConnectionError(endpoint_url="http://storage")

        leases = Leases(store.bucket, ttl_s=0.2, poll_s=SOON)
        with caplog.at_level(logging.WARNING), leases.claimed("compile", KEY, nothing):
            hooks("before-call.s3.GetObject", refuse)
            down.set()
            wait_until(lambda: "the lease could not be renewed" in caplog.text)
            before = stored()
            down.clear()
            wait_until(lambda: (now_ := stored()) and before and now_.renewals > before.renewals)
        assert caplog.text.count("could not be renewed") == 1
        assert stored() is None

    def test_a_lease_that_was_deleted_by_hand_is_written_again(
        self, store: Store, s3: Any, stored: Callable[[], Any]
    ) -> None:
        with Leases(store.bucket, ttl_s=0.2).claimed("compile", KEY, nothing):
            s3.client.delete_object(Bucket=s3.bucket, Key=LEASE)
            wait_until(lambda: stored() is not None)
        assert stored() is None


class TestServicesThatCannot:
    def test_without_conditional_writes_builds_go_on_with_one_warning(
        self,
        store: Store,
        hooks: Callable[[str, Callable[..., Any]], None],
        caplog: pytest.LogCaptureFixture,
        s3: Any,
    ) -> None:
        def forget_conditions(params: dict[str, Any], **_: Any) -> None:
            params.pop("IfNoneMatch", None)
            params.pop("IfMatch", None)

        hooks("provide-client-params.s3.PutObject", forget_conditions)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                with store.leases.claimed("compile", KEY, nothing) as found:
                    assert found is None
        assert len(caplog.records) == 1
        assert "does not honour conditional writes" in caplog.text
        result = StageResult(stage="compile", key=KEY, inputs={}, outputs=(), seconds=1)
        assert store.put_stage(result) == store.get_stage("compile", KEY) == result
        assert s3.client.list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 1

    def test_who_may_not_delete_lets_go_in_writing(
        self,
        store: Store,
        hooks: Callable[[str, Callable[..., Any]], None],
        stored: Callable[[], LeaseRecord | None],
    ) -> None:
        def refuse(**_: Any) -> None:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "DeleteObject")

        hooks("before-call.s3.DeleteObject", refuse)
        waits: list[str] = []
        for _ in range(2):
            with store.leases.claimed("compile", KEY, nothing, on_wait=waits.append) as found:
                assert found is None
            lease = stored()
            assert lease
            assert lease.ttl_s == 0
        assert waits == []

    def test_who_may_not_write_leases_builds_without(
        self,
        store: Store,
        hooks: Callable[[str, Callable[..., Any]], None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def refuse(**_: Any) -> None:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject")

        store.probe_conditional_writes()
        hooks("before-call.s3.PutObject", refuse)
        with (
            caplog.at_level(logging.WARNING),
            store.leases.claimed("compile", KEY, nothing) as found,
        ):
            assert found is None
        assert "does not accept the credentials" in caplog.text


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
