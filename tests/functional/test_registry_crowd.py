"""Many publish and promote at once, some are killed: nothing is lost, nothing is half there."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import crowd
import pytest
from crowd import LATEST, open_store

from trtforge.store import Manifest, Store
from trtforge.store.aliases import HISTORY
from trtforge.store.verify import verify_store


@pytest.fixture
def place(s3: Any) -> dict[str, str]:
    return {
        "endpoint_url": s3.endpoint_url,
        "bucket": s3.bucket,
        "access_key_id": s3.access_key_id,
        "secret_access_key": s3.secret_access_key,
    }


@pytest.fixture
def store(place: dict[str, str], tmp_path: Path) -> Store:
    return open_store(place, tmp_path / "cache")


def run(place: dict[str, str], *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, crowd.__file__, *map(str, arguments)],
        input=json.dumps(place),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_nothing_is_half_there(store: Store) -> list[Manifest]:
    """Every manifest can be read, has all its blobs with the right bytes; aliases point at some."""
    found = verify_store(store)
    assert found.damage == ()
    published = list(store.list_manifests())
    assert len(published) == len(list(store.bucket.keys("manifests/")))
    assert {record.engine_id for _, record in store.list_aliases()} <= {
        manifest.engine_id for manifest in published
    }
    return published


def check_history_is_linear(store: Store) -> list[str]:
    """Each move starts where the one before it ended; returns who moved, in order."""
    record = store.get_alias(LATEST)
    assert record
    before = record.history[0].previous
    for move in record.history:
        assert move.previous == before
        before = move.engine_id
    assert record.engine_id == before
    assert (record.previous, record.by) == (record.history[-1].previous, record.history[-1].by)
    assert len({move.id for move in record.history}) == len(record.history)
    return [move.by for move in record.history]


def publish_at_once(place: dict[str, str], store: Store, rounds: int) -> None:
    run(place, "publish", 8, rounds)
    published = check_nothing_is_half_there(store)
    own, shared = (rounds + 1) // 2, rounds // 2
    assert len(published) == 8 * own + shared
    movers = check_history_is_linear(store)
    assert set(Counter(movers).values()) == {1}
    # A process's own engine was nobody else's: its move has happened, whoever came in between.
    owners = {f"process-{i}-{n}" for i in range(8) for n in range(0, rounds, 2)}
    assert owners <= set(movers) or len(movers) == HISTORY


def test_eight_processes_publish_and_promote_at_once(place: dict[str, str], store: Store) -> None:
    publish_at_once(place, store, rounds=3)


@pytest.mark.slow
def test_eight_processes_publish_and_promote_at_once_for_long(
    place: dict[str, str], store: Store
) -> None:
    publish_at_once(place, store, rounds=20)


def kill(place: dict[str, str], store: Store, times: int, seed: int) -> None:
    told = json.loads(run(place, "kill", times, seed))
    assert told["killed"] > 0
    check_nothing_is_half_there(store)
    movers = check_history_is_linear(store)
    assert {f"engine-{number}" for number in range(0, times, 4)} <= set(movers)


def test_publishers_that_are_killed_leave_nothing_half(place: dict[str, str], store: Store) -> None:
    kill(place, store, times=20, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_publishers_that_are_killed_leave_nothing_half_for_long(
    place: dict[str, str], store: Store, seed: int
) -> None:
    kill(place, store, times=60, seed=seed)
