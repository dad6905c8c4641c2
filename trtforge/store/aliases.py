"""Aliases: small mutable pointers to engines, moved by compare-and-swap, with their history."""

import getpass
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import AwareDatetime

from trtforge.errors import InputError, ServiceError
from trtforge.store.announce import announced
from trtforge.store.gates import require_gates
from trtforge.store.inventory import read_records
from trtforge.store.layout import ALIASES, AliasName, alias_key, alias_name_of, slug
from trtforge.store.manifests import Manifests
from trtforge.store.objects import Bucket
from trtforge.store.records import Part, Record, Sha256, now, parse_record

HISTORY = 100
"""Moves that an alias remembers."""

_SHOWN_DIGITS = 12


class AliasUnknownError(InputError):
    """No engine of this model was ever given this alias."""


class AliasAmbiguousError(InputError):
    """The alias exists for several GPUs or backends of the model."""


class NothingToRollBackToError(InputError):
    """The alias has pointed at one engine only."""


class AliasMovedError(ServiceError):
    """Somebody else moved the alias at the same time."""


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


@dataclass(frozen=True)
class RollBack:
    """Where `roll_back` left an alias: at `engine_id`; `previous` is the engine it left.

    `moved` is False when it pointed there already.
    """

    engine_id: str
    previous: str | None
    moved: bool


class Aliases:
    """The aliases of a bucket."""

    def __init__(self, bucket: Bucket, manifests: Manifests) -> None:
        self._bucket = bucket
        self._manifests = manifests

    def move(self, name: AliasName, engine_id: str, *, by: str) -> AliasChange:
        """See `Store.set_alias`."""
        self._require_gates(engine_id)
        return self._move(name, engine_id, by=by)

    def roll_back(self, name: AliasName, *, by: str, to: str | None = None) -> RollBack:
        """Point an alias at the engine it pointed at before its last move, or at any other one.

        A roll-back is a move as any other, and is in the history as one. Rolling back twice
        therefore leads to where it began, as with `kubectl rollout undo`; further back leads `to`.

        Back at the engine before it goes whatever a gate says of that one by now.

        Args:
            to: The whole id of a published engine.

        Raises:
            GateNotPassedError: The engine `to` did not pass its gates.
            AliasUnknownError: It was never set.
            NothingToRollBackToError: It never pointed at another engine.
            AliasMovedError: Somebody moved it meanwhile: two people who roll back the same
                mistake do not undo each other's work.
            EngineUnknownError: That engine is gone.
        """
        record = self.get(name)
        if record is None:
            raise self._alias_unknown(name.model, name.alias)
        target = to or record.previous
        if target is None:
            raise NothingToRollBackToError(
                f"it has pointed at engine {record.engine_id[:_SHOWN_DIGITS]} only",
                field="alias",
                value=name.alias,
                remedy="Name the engine with --to",
            )
        if to:
            self._require_gates(to)
        change = self._move(name, target, by=by, expected=record)
        return RollBack(target, change.previous, change.moved)

    def find(
        self, model: str, alias: str, *, gpu: str | None = None, backend: str | None = None
    ) -> AliasName:
        """The one alias of this name that the model has; `gpu` and `backend` tell several apart.

        Raises:
            AliasUnknownError: There is none.
            AliasAmbiguousError: There are several.
        """
        names = [
            name
            for name, _ in self.all(model)
            if name.alias == alias and gpu in (None, name.gpu) and backend in (None, name.backend)
        ]
        if not names:
            raise self._alias_unknown(model, alias)
        if len(names) > 1:
            places = "; ".join(f"--gpu {n.gpu!r} --backend {n.backend}" for n in names)
            raise AliasAmbiguousError(
                f"model {model!r} has it {len(names)} times",
                field="alias",
                value=alias,
                remedy=f"Say which one is meant: {places}",
            )
        return names[0]

    def _move(
        self, name: AliasName, engine_id: str, *, by: str, expected: AliasRecord | None = None
    ) -> AliasChange:
        """Move by compare-and-swap; from `expected` only, when given."""
        key = alias_key(name)
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
            if expected and current != expected:
                raise _moved(name, current)
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

        with announced(self._bucket, engine_ids=[engine_id]):
            if not self._manifests.exists(engine_id):
                raise self._manifests.unknown(engine_id)
            self._bucket.update(key, decide)
        return change

    def _require_gates(self, engine_id: str) -> None:
        if not self._manifests.exists(engine_id):
            raise self._manifests.unknown(engine_id)
        require_gates(self._bucket, self._manifests.get(engine_id))

    def get(self, name: AliasName) -> AliasRecord | None:
        """See `Store.get_alias`."""
        key = alias_key(name)
        stored = self._bucket.get(key)
        return self._parse(key, stored.data) if stored else None

    def all(self, model: str | None = None) -> Iterator[tuple[AliasName, AliasRecord]]:
        """See `Store.list_aliases`."""
        prefix = f"{ALIASES}{slug(model)}/" if model else ALIASES
        for key, record in read_records(self._bucket, AliasRecord, self._bucket.keys(prefix)):
            yield alias_name_of(key), record

    def _parse(self, key: str, data: bytes) -> AliasRecord:
        return parse_record(AliasRecord, data, self._bucket.uri(key))

    def _alias_unknown(self, model: str, alias: str) -> AliasUnknownError:
        known = sorted({f"{name.alias!r} of {name.model!r}" for name, _ in self.all()})
        return AliasUnknownError(
            f"model {model!r} has no such alias here; there are: {', '.join(known) or 'none'}",
            field="alias",
            value=alias,
            remedy="Set it with `trtforge promote`",
        )


def who() -> str:
    """This person on this machine, for histories: `user@host`."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container may run as a user without a name
        return socket.gethostname()


def _moved(name: AliasName, current: AliasRecord | None) -> AliasMovedError:
    where = f"at engine {current.engine_id[:_SHOWN_DIGITS]}" if current else "nowhere"
    by = f" (moved by {current.by})" if current else ""
    return AliasMovedError(
        f"somebody moved it meanwhile; it points {where} now{by}",
        field="alias",
        value=name.alias,
        remedy="Look at `trtforge history`, and roll back again if it is still needed",
    )
