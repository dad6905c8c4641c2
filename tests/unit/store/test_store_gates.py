"""Verdicts on engines, and overrides: gates block aliases, nothing else."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from published import engine as engine_of
from typer.testing import CliRunner

from trtforge.cli import app
from trtforge.engines.machine import Machine
from trtforge.files import FileRef
from trtforge.store import AliasName, Manifest, Store
from trtforge.store.gates import (
    GateNotPassedError,
    GateRecord,
    GateRecords,
    GateState,
    NoReasonError,
    NothingToOverrideError,
    gate_state,
)
from trtforge.store.gc import Rules, find_garbage
from trtforge.store.manifests import EngineUnknownError
from trtforge.store.mirror import mirror_engine
from trtforge.store.resolve import NoEngineFitsError, Wishes, resolve

PASSED: dict[str, Any] = {"correctness": {"passed": True, "answers": 3}}
SLOWER: dict[str, Any] = {**PASSED, "performance": {"passed": False, "status": "slower"}}
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
ALIAS = AliasName("org/model", "NVIDIA H200", "aoti", "latest")


@pytest.fixture
def clock() -> Iterator[datetime]:
    return (START + timedelta(seconds=n) for n in range(1000))


@pytest.fixture
def records(store: Store) -> GateRecords:
    return GateRecords(store.bucket)


@pytest.fixture
def say(records: GateRecords, clock: Iterator[datetime]) -> Callable[..., None]:
    """Records a verdict."""

    def one(manifest: Manifest, gates: dict[str, Any], evidence: tuple[FileRef, ...] = ()) -> None:
        records.put(
            GateRecord(
                kind="verdict",
                engine_id=manifest.engine_id,
                gates=gates,
                evidence=evidence,
                by="test",
                at=next(clock),
            )
        )

    return one


def failed_by_itself(manifest: Manifest) -> Manifest:
    """The engine as its build would describe it after a failed correctness gate."""
    wrong = {"correctness": {"passed": False, "answers": 3}}
    return Manifest.of(manifest.core.model_copy(update={"gates": wrong}))


class TestState:
    def test_an_engine_that_nothing_is_said_of_passed(
        self, publish: Callable[..., Manifest]
    ) -> None:
        state = gate_state(publish("one"))
        assert state == GateState()
        assert not state.blocks
        assert state.describe() == ""

    def test_its_manifest_alone_can_say_that_it_failed(self) -> None:
        state = gate_state(failed_by_itself(engine_of()))
        assert state.failed == ("correctness",)
        assert state.blocks
        assert state.describe() == "correctness failed"

    def test_the_newest_verdict_counts(
        self, records: GateRecords, publish: Callable[..., Manifest], say: Callable[..., None]
    ) -> None:
        manifest = publish("one")
        say(manifest, SLOWER)
        assert records.state(manifest).failed == ("performance",)
        say(manifest, PASSED)
        assert records.state(manifest) == GateState()
        say(manifest, SLOWER)
        assert records.state(manifest).blocks

    def test_of_many_engines_each_has_its_own(
        self, records: GateRecords, publish: Callable[..., Manifest], say: Callable[..., None]
    ) -> None:
        one, other = publish("one"), publish("other")
        say(one, SLOWER)
        states = records.states([one, other])
        assert [states[m.engine_id].blocks for m in (one, other)] == [True, False]


class TestOverride:
    def test_who_when_and_why_are_kept_and_the_engine_passes(
        self, records: GateRecords, publish: Callable[..., Manifest], say: Callable[..., None]
    ) -> None:
        manifest = publish("one")
        say(manifest, SLOWER)
        made = records.override(manifest, "  smaller,\n and that counts here ", by="ada@desk")
        state = records.state(manifest)
        assert state.override == made
        assert not state.blocks
        assert (made.by, made.reason) == ("ada@desk", "smaller, and that counts here")
        assert state.describe() == (
            f"performance failed; let pass by ada@desk on {made.at:%Y-%m-%d}: "
            "smaller, and that counts here"
        )

    def test_it_holds_for_the_gates_that_had_failed_only(
        self, records: GateRecords, publish: Callable[..., Manifest]
    ) -> None:
        manifest = publish("one")

        def say_now(gates: dict[str, Any]) -> None:
            told = {"kind": "verdict", "engine_id": manifest.engine_id, "gates": gates, "by": "t"}
            records.put(GateRecord.model_validate(told))

        say_now(SLOWER)
        records.override(manifest, "known", by="ada")
        say_now({**SLOWER, "correctness": {"passed": False}})
        assert records.state(manifest).blocks
        say_now(SLOWER)
        assert not records.state(manifest).blocks

    @pytest.mark.parametrize("reason", ["", " ", "\n"])
    def test_there_is_none_without_a_reason(
        self,
        records: GateRecords,
        publish: Callable[..., Manifest],
        say: Callable[..., None],
        reason: str,
    ) -> None:
        manifest = publish("one")
        say(manifest, SLOWER)
        with pytest.raises(NoReasonError):
            records.override(manifest, reason, by="ada")
        assert records.state(manifest).blocks

    def test_there_is_none_of_an_engine_that_passed(
        self, records: GateRecords, publish: Callable[..., Manifest]
    ) -> None:
        with pytest.raises(NothingToOverrideError, match="trtforge promote"):
            records.override(publish("one"), "because", by="ada")


class TestAliases:
    def test_none_points_at_an_engine_that_failed(
        self, store: Store, publish: Callable[..., Manifest], say: Callable[..., None]
    ) -> None:
        good, bad = publish("good"), publish("bad")
        store.set_alias(ALIAS, good.engine_id, by="test")
        say(bad, SLOWER)
        with pytest.raises(GateNotPassedError, match=r"performance failed.*--override") as refused:
            store.set_alias(ALIAS, bad.engine_id, by="test")
        assert refused.value.exit_code == 5
        record = store.get_alias(ALIAS)
        assert record is not None
        assert record.engine_id == good.engine_id

    def test_one_does_after_an_override(
        self,
        store: Store,
        records: GateRecords,
        publish: Callable[..., Manifest],
        say: Callable[..., None],
    ) -> None:
        bad = publish("bad")
        say(bad, SLOWER)
        records.override(bad, "because", by="ada")
        assert store.set_alias(ALIAS, bad.engine_id, by="test").moved

    def test_the_way_back_is_open_whatever_a_gate_says_by_now(
        self, store: Store, publish: Callable[..., Manifest], say: Callable[..., None]
    ) -> None:
        old, new = publish("old"), publish("new")
        for manifest in (old, new):
            store.set_alias(ALIAS, manifest.engine_id, by="test")
        say(old, SLOWER)
        assert store.aliases.roll_back(ALIAS, by="test").engine_id == old.engine_id
        say(new, SLOWER)
        with pytest.raises(GateNotPassedError):
            store.aliases.roll_back(ALIAS, by="test", to=new.engine_id)

    def test_an_engine_that_is_not_there_is_still_told_as_such(self, store: Store) -> None:
        with pytest.raises(EngineUnknownError):
            store.set_alias(ALIAS, "e" * 64, by="test")


class TestResolve:
    MACHINE = Machine(os="linux", arch="x86_64", cpu="x86_64 avx2 avx512f")

    def test_an_engine_that_failed_is_never_chosen_unless_asked_for(self) -> None:
        good = engine_of(on="cpu", backend="aoti", hours_old=9)
        bad = failed_by_itself(engine_of(on="cpu", backend="aoti", hours_old=1))
        model = good.core.model.name
        found = resolve([good, bad], [], self.MACHINE, model)
        assert found.require().manifest == good
        (left_out,) = found.near_misses
        assert [m.field for m in left_out.mismatches] == ["gates"]
        asked = resolve([good, bad], [], self.MACHINE, model, Wishes(failed=True))
        assert {c.manifest.engine_id for c in asked.fitting} == {good.engine_id, bad.engine_id}
        with pytest.raises(NoEngineFitsError, match="correctness failed"):
            resolve([bad], [], self.MACHINE, model).require()

    def test_what_was_recorded_since_counts(self) -> None:
        manifest = engine_of(on="cpu", backend="aoti")
        model, states = manifest.core.model.name, {manifest.engine_id: GateState(("performance",))}
        assert not resolve([manifest], [], self.MACHINE, model, gates=states).fitting
        override = GateRecord(
            kind="override", engine_id=manifest.engine_id, gates={}, by="ada", reason="so"
        )
        states = {manifest.engine_id: GateState(("performance",), override)}
        assert resolve([manifest], [], self.MACHINE, model, gates=states).fitting


class TestKeeping:
    def test_evidence_stays_as_long_as_the_engine_and_verdicts_go_with_it(
        self,
        store: Store,
        publish: Callable[..., Manifest],
        say: Callable[..., None],
    ) -> None:
        now = Rules(keep_s=-60, grace_s=-60, uploads_s=-60)
        manifest = publish("one")
        evidence = store.put_bytes(b"{}", "performance.json")
        say(manifest, SLOWER, (evidence,))
        store.bucket.put(f"pins/{manifest.engine_id}.json", b"{}", "application/json")
        assert find_garbage(store.bucket, now) == []
        store.bucket.delete(f"manifests/{manifest.engine_id}.json")
        store.bucket.delete(f"pins/{manifest.engine_id}.json")
        gone = {item.key.split("/")[0] for item in find_garbage(store.bucket, now)}
        assert "gates" in gone

    def test_they_travel_with_the_engine_to_a_second_bucket(
        self,
        store: Store,
        records: GateRecords,
        publish: Callable[..., Manifest],
        say: Callable[..., None],
        second_bucket: Store,
    ) -> None:
        manifest = publish("one")
        evidence = store.put_bytes(b"{}", "performance.json")
        say(manifest, SLOWER, (evidence,))
        records.override(manifest, "because", by="ada")
        for _ in range(2):
            mirror_engine(store, second_bucket, manifest, [ALIAS], by="test")
        there = GateRecords(second_bucket.bucket)
        assert there.of(manifest.engine_id) == records.of(manifest.engine_id)
        assert second_bucket.blobs.missing([evidence]) == []

    @pytest.fixture
    def second_bucket(self, store: Store, s3: Any, tmp_path: Path) -> Store:
        name = f"{s3.bucket}-two"
        store.bucket.client.create_bucket(Bucket=name)
        return Store(store.bucket.client, name, tmp_path / "second")


class TestCommands:
    @pytest.fixture
    def run(self, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        for name, value in {
            "HOME": str(tmp_path / "home"),
            "S3_ENDPOINT_URL": s3.endpoint_url,
            "S3_BUCKET": s3.bucket,
            "S3_ACCESS_KEY_ID": s3.access_key_id,
            "S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        }.items():
            monkeypatch.setenv(f"TRTFORGE_{name}", value)
        return lambda *words: CliRunner().invoke(app, [str(word) for word in words])

    def test_list_and_promote_before_and_after_somebody_lets_it_pass(
        self,
        run: Callable[..., Any],
        publish: Callable[..., Manifest],
        say: Callable[..., None],
    ) -> None:
        manifest = publish("one")
        short = manifest.engine_id[:12]
        say(manifest, SLOWER)
        assert "gate failed" in run("list").stdout
        assert isinstance(run("promote", short, "prod").exception, GateNotPassedError)
        assert isinstance(run("gate", short, "--override", " ").exception, NoReasonError)
        done = run("gate", short, "--override", "nobody minds", "--by", "ada")
        assert done.exit_code == 0
        assert "performance of" in done.stdout
        assert "let pass by ada: nobody minds" in done.stdout
        assert run("promote", short, "prod").exit_code == 0
        listed = run("list")
        assert "gate failed" not in listed.stdout
        assert "prod" in listed.stdout
