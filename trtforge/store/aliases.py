"""Aliases: small mutable pointers to engines, moved by compare-and-swap, with their history."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import AwareDatetime

from trtforge.store.layout import ALIASES, AliasName, alias_key, alias_name_of, slug
from trtforge.store.manifests import Manifests
from trtforge.store.objects import Bucket
from trtforge.store.records import Part, Record, Sha256, now, parse_record

HISTORY = 100
"""Moves that an alias remembers."""


class AliasMove(Part):
    """One move of an alias.

    Attributes:
        id: Unique. A request whose answer was lost may be sent again after it took effect;
            the id tells that this move is in the store already.
        by: Who moved it: a run, or a person.
    """

    id: str
    engine_id: Sha256
    previous: Sha256 | None
    by: str
    at: AwareDatetime


class AliasRecord(Record):
    """Where an alias points and pointed before, and its last `HISTORY` moves, oldest first."""

    engine_id: Sha256
    previous: Sha256 | None
    by: str
    at: AwareDatetime
    history: tuple[AliasMove, ...]


@dataclass(frozen=True)
class AliasChange:
    """What `set_alias` did: whether it moved, and the engine it pointed at before."""

    moved: bool
    previous: str | None


class Aliases:
    """The aliases of a bucket."""

    def __init__(self, bucket: Bucket, manifests: Manifests) -> None:
        self._bucket = bucket
        self._manifests = manifests

    def move(self, name: AliasName, engine_id: str, *, by: str) -> AliasChange:
        """See `Store.set_alias`."""
        key = alias_key(name)
        if not self._manifests.exists(engine_id):
            raise self._manifests.unknown(engine_id)
        move_id = uuid.uuid4().hex
        change = AliasChange(False, None)

        def decide(data: bytes | None) -> bytes | None:
            nonlocal change
            current = self._parse(key, data) if data is not None else None
            past = current.history if current else ()
            mine = next((move for move in past if move.id == move_id), None)
            if mine:
                change = AliasChange(True, mine.previous)
                return None
            if current and current.engine_id == engine_id:
                change = AliasChange(False, current.previous)
                return None
            previous = current.engine_id if current else None
            change = AliasChange(True, previous)
            move = AliasMove(id=move_id, engine_id=engine_id, previous=previous, by=by, at=now())
            return AliasRecord(
                engine_id=engine_id,
                previous=previous,
                by=by,
                at=move.at,
                history=(*past, move)[-HISTORY:],
            ).to_bytes()

        self._bucket.update(key, decide)
        return change

    def get(self, name: AliasName) -> AliasRecord | None:
        """See `Store.get_alias`."""
        key = alias_key(name)
        stored = self._bucket.get(key)
        return self._parse(key, stored.data) if stored else None

    def all(self, model: str | None = None) -> Iterator[tuple[AliasName, AliasRecord]]:
        """See `Store.list_aliases`."""
        prefix = f"{ALIASES}{slug(model)}/" if model else ALIASES
        for key in self._bucket.keys(prefix):
            stored = self._bucket.get(key)
            if stored:  # else removed since the listing
                yield alias_name_of(key), self._parse(key, stored.data)

    def _parse(self, key: str, data: bytes) -> AliasRecord:
        return parse_record(AliasRecord, data, self._bucket.uri(key))
