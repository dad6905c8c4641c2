"""An alias points at a published engine, and remembers every move exactly once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from trtforge.store import AliasChange, AliasName, Manifest, Store
from trtforge.store.aliases import (
    HISTORY,
    AliasAmbiguousError,
    AliasMovedError,
    AliasUnknownError,
    NothingToRollBackToError,
    RollBack,
)
from trtforge.store.layout import alias_key
from trtforge.store.manifests import EngineUnknownError

LATEST = AliasName("org/model", "NVIDIA H200", "trtllm", "latest")
Publish = Callable[[str], Manifest]


def test_an_alias_moves_and_remembers(store: Store, publish: Publish) -> None:
    one, two = publish("one").engine_id, publish("two").engine_id
    assert store.get_alias(LATEST) is None
    assert store.set_alias(LATEST, one, by="run-1") == AliasChange(True, None)
    assert store.set_alias(LATEST, two, by="run-2") == AliasChange(True, one)
    assert store.set_alias(LATEST, one, by="alice") == AliasChange(True, two)
    record = store.get_alias(LATEST)
    assert record
    assert (record.engine_id, record.previous, record.by) == (one, two, "alice")
    moves = [(move.engine_id, move.previous, move.by) for move in record.history]
    assert moves == [(one, None, "run-1"), (two, one, "run-2"), (one, two, "alice")]


def test_an_alias_that_points_there_already_is_not_written(
    store: Store, publish: Publish, s3: Any
) -> None:
    engine_id = publish("one").engine_id
    store.set_alias(LATEST, engine_id, by="run-1")
    before = s3.client.get_object(Bucket=s3.bucket, Key=alias_key(LATEST))["Body"].read()
    assert store.set_alias(LATEST, engine_id, by="run-2") == AliasChange(False, None)
    after = s3.client.get_object(Bucket=s3.bucket, Key=alias_key(LATEST))["Body"].read()
    assert after == before


def test_an_alias_never_points_at_an_engine_that_is_not_published(
    store: Store, publish: Publish
) -> None:
    with pytest.raises(EngineUnknownError):
        store.set_alias(LATEST, "0" * 64, by="run-1")
    assert store.get_alias(LATEST) is None
    known = publish("one").engine_id
    store.set_alias(LATEST, known, by="run-1")
    with pytest.raises(EngineUnknownError, match=known[:12]):
        store.set_alias(LATEST, "0" * 64, by="run-2")
    record = store.get_alias(LATEST)
    assert record
    assert record.engine_id == known


def test_every_move_of_eight_movers_at_once_is_in_the_history_once(
    open_store: Callable[..., Store], publish: Publish
) -> None:
    engines = [publish(f"engine-{i}").engine_id for i in range(8)]
    stores = [open_store(f"machine-{i}") for i in range(8)]

    def move(index: int) -> AliasChange:
        return stores[index].set_alias(LATEST, engines[index], by=f"run-{index}")

    with ThreadPoolExecutor(8) as pool:
        changes = list(pool.map(move, range(8)))
    record = stores[0].get_alias(LATEST)
    assert record
    moves = record.history
    assert sorted(move.engine_id for move in moves) == sorted(engines)
    assert [move.previous for move in moves] == [None, *(move.engine_id for move in moves[:-1])]
    assert record.engine_id == moves[-1].engine_id
    told = {engines[i]: change.previous for i, change in enumerate(changes) if change.moved}
    assert told == {move.engine_id: move.previous for move in moves}


def test_a_move_whose_answer_was_lost_counts_once(
    store: Store, publish: Publish, hooks: Callable[..., None]
) -> None:
    one, two = publish("one").engine_id, publish("two").engine_id
    store.set_alias(LATEST, one, by="run-1")
    repeated: list[int] = []

    def send_again(attempts: int, **_: Any) -> int | None:
        if attempts > 1:
            return None
        repeated.append(attempts)
        return 0

    hooks("needs-retry.s3.PutObject", send_again)
    assert store.set_alias(LATEST, two, by="run-2") == AliasChange(True, one)
    assert repeated
    record = store.get_alias(LATEST)
    assert record
    assert [move.engine_id for move in record.history] == [one, two]


def test_the_history_is_bounded(store: Store, publish: Publish, s3: Any) -> None:
    engines = [publish("one").engine_id, publish("two").engine_id]
    store.set_alias(LATEST, engines[0], by="run")
    record = store.get_alias(LATEST)
    assert record
    full = record.model_copy(update={"history": record.history * HISTORY})
    s3.client.put_object(Bucket=s3.bucket, Key=alias_key(LATEST), Body=full.to_bytes())
    store.set_alias(LATEST, engines[1], by="the newest")
    record = store.get_alias(LATEST)
    assert record
    assert len(record.history) == HISTORY
    assert record.history[-1].by == "the newest"


def test_aliases_are_listed_by_their_real_names(store: Store, publish: Publish) -> None:
    engine_id = publish("one").engine_id
    names = {
        LATEST,
        AliasName("org/model", "NVIDIA H200", "trtllm", "prod"),
        AliasName("org/model-2", "NVIDIA H200", "aoti", "latest"),
    }
    for name in names:
        store.set_alias(name, engine_id, by="run")
    assert {name for name, _ in store.list_aliases()} == names
    assert {name for name, _ in store.list_aliases("org/model-2")} == {
        AliasName("org/model-2", "NVIDIA H200", "aoti", "latest")
    }
    assert {record.engine_id for _, record in store.list_aliases("org/model")} == {engine_id}
    assert list(store.list_aliases("org/none")) == []


def test_rolling_back_leads_to_the_engine_before_and_twice_leads_back(
    store: Store, publish: Publish
) -> None:
    one, two, three = (publish(name).engine_id for name in ("one", "two", "three"))
    for engine_id in (one, two, three):
        store.set_alias(LATEST, engine_id, by="run")
    assert store.aliases.roll_back(LATEST, by="alice") == RollBack(two, three, True)
    assert store.aliases.roll_back(LATEST, by="alice") == RollBack(three, two, True)
    assert store.aliases.roll_back(LATEST, by="alice", to=one) == RollBack(one, three, True)
    assert store.aliases.roll_back(LATEST, by="alice", to=one) == RollBack(one, three, False)
    record = store.get_alias(LATEST)
    assert record
    assert [move.engine_id for move in record.history] == [one, two, three, two, three, one]


def test_there_may_be_nothing_to_roll_back_to(store: Store, publish: Publish) -> None:
    with pytest.raises(AliasUnknownError, match="there are: none"):
        store.aliases.roll_back(LATEST, by="alice")
    store.set_alias(LATEST, publish("one").engine_id, by="run")
    with pytest.raises(NothingToRollBackToError, match="--to"):
        store.aliases.roll_back(LATEST, by="alice")
    with pytest.raises(EngineUnknownError):
        store.aliases.roll_back(LATEST, by="alice", to="0" * 64)


def test_two_who_roll_back_the_same_mistake_do_not_undo_each_other(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = publish("one").engine_id, publish("two").engine_id
    store.set_alias(LATEST, one, by="run")
    store.set_alias(LATEST, two, by="run")
    read = store.aliases.get

    def read_before_bob(name: AliasName) -> object:
        seen = read(name)
        monkeypatch.undo()
        store.aliases.roll_back(name, by="bob")
        return seen

    monkeypatch.setattr(store.aliases, "get", read_before_bob)
    with pytest.raises(AliasMovedError, match=f"at engine {one[:12]} now .moved by bob"):
        store.aliases.roll_back(LATEST, by="alice")
    record = store.get_alias(LATEST)
    assert record
    assert record.engine_id == one


def test_an_alias_is_found_without_gpu_and_backend_where_there_is_one(
    store: Store, publish: Publish
) -> None:
    engine_id = publish("one").engine_id
    other = AliasName("org/model", "NVIDIA L4", "trtllm", "latest")
    store.set_alias(LATEST, engine_id, by="run")
    assert store.aliases.find("org/model", "latest") == LATEST
    store.set_alias(other, engine_id, by="run")
    with pytest.raises(AliasAmbiguousError, match="--gpu 'NVIDIA L4' --backend trtllm"):
        store.aliases.find("org/model", "latest")
    assert store.aliases.find("org/model", "latest", gpu="NVIDIA L4") == other
    with pytest.raises(AliasUnknownError, match="'latest' of 'org/model'"):
        store.aliases.find("org/model", "prod")
