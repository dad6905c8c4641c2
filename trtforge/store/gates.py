"""What gates said of published engines, and what people said to that.

    gates/<engine id>/<time>-<unique>.json    one verdict or one override; written once

A manifest tells what its build's correctness gate said, and never changes. What is found out later
(by `trtforge gate`), what holds only beside another engine (the performance gate), and who let an
engine pass in spite of it are records of their own: of the verdicts the newest counts, and an
override counts for the gates it names.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Literal

from pydantic import AwareDatetime, Field, JsonValue

from trtforge.errors import GateError, InputError
from trtforge.files import FileRef
from trtforge.store.announce import announced
from trtforge.store.inventory import read_records
from trtforge.store.layout import GATES, gate_key
from trtforge.store.manifests import Manifest
from trtforge.store.objects import Bucket
from trtforge.store.records import Record, Sha256, now

_SHOWN_DIGITS = 12


class GateNotPassedError(GateError):
    """An alias is to point at an engine that did not pass its gates."""


class NothingToOverrideError(InputError):
    """The engine passed its gates."""


class NoReasonError(InputError):
    """An override without a reason."""


class GateRecord(Record):
    """One verdict on a published engine, or one override.

    Attributes:
        kind: `override` when a person lets the engine pass.
        gates: Of a verdict: by the name of the gate, `passed` and what was measured. Of an
            override: the gates that had failed.
        evidence: Files of the measurement; blobs of the store.
        by: Who ran the gates, or who overrode them.
        reason: Of an override.
    """

    kind: Literal["verdict", "override"]
    engine_id: Sha256
    gates: dict[str, JsonValue]
    evidence: tuple[FileRef, ...] = ()
    by: str
    reason: str = ""
    at: AwareDatetime = Field(default_factory=now)


@dataclass(frozen=True)
class GateState:
    """How an engine stands with its gates now.

    Attributes:
        failed: The gates it did not pass, by name.
        override: Who let it pass, when and why.
    """

    failed: tuple[str, ...] = ()
    override: GateRecord | None = None

    @property
    def blocks(self) -> bool:
        """Whether no alias may point at it."""
        return bool(self.failed) and self.override is None

    def describe(self) -> str:
        """`correctness failed; let pass by …`; empty for an engine that passed."""
        if not self.failed:
            return ""
        text = f"{', '.join(self.failed)} failed"
        over = self.override
        return (
            f"{text}; let pass by {over.by} on {over.at:%Y-%m-%d}: {over.reason}" if over else text
        )

    def to_json(self) -> dict[str, Any]:
        over = self.override
        told = {"by": over.by, "at": over.at.isoformat(), "reason": over.reason} if over else None
        return {"failed": list(self.failed), "override": told}


def failed_gates(gates: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of those that say they were not passed."""
    return tuple(
        name
        for name, told in gates.items()
        if isinstance(told, dict) and told.get("passed") is False
    )


def gate_state(manifest: Manifest, records: Iterable[GateRecord] = ()) -> GateState:
    """How an engine stands, by its manifest and the records on it, oldest first."""
    failed, overrides = failed_gates(manifest.core.gates), []
    for record in records:
        if record.kind == "verdict":
            failed = failed_gates(record.gates)
        else:
            overrides.append(record)
    covering = (over for over in reversed(overrides) if set(failed) <= set(over.gates))
    return GateState(failed, next(covering, None) if failed else None)


class GateRecords:
    """The verdicts and overrides of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def put(self, record: GateRecord) -> None:
        """Keep a record; those before it stay."""
        at = record.at.astimezone(UTC)
        key = gate_key(record.engine_id, f"{at:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}")
        with announced(self._bucket, engine_ids=[record.engine_id], files=record.evidence):
            self._bucket.put_if_absent(key, record.to_bytes())

    def of(self, engine_id: str) -> list[GateRecord]:
        """The records on one engine, oldest first."""
        return self._read(f"{GATES}{engine_id}/")

    def by_engine(self) -> dict[str, list[GateRecord]]:
        """All records, by the id of their engine, oldest first."""
        found: dict[str, list[GateRecord]] = {}
        for record in self._read(GATES):
            found.setdefault(record.engine_id, []).append(record)
        return found

    def state(self, manifest: Manifest) -> GateState:
        """How an engine stands with its gates now."""
        return gate_state(manifest, self.of(manifest.engine_id))

    def states(self, manifests: Iterable[Manifest]) -> dict[str, GateState]:
        """How many engines stand, by their ids."""
        records = self.by_engine()
        return {m.engine_id: gate_state(m, records.get(m.engine_id, ())) for m in manifests}

    def override(self, manifest: Manifest, reason: str, *, by: str) -> GateRecord:
        """Let an engine pass that did not.

        Raises:
            NoReasonError: Why is not said.
            NothingToOverrideError: It passed.
        """
        reason = require_reason(reason)
        state = self.state(manifest)
        if not state.failed:
            raise NothingToOverrideError(
                "it passed its gates",
                field="ENGINE",
                value=manifest.engine_id[:_SHOWN_DIGITS],
                remedy="Point an alias at it with `trtforge promote`",
            )
        record = GateRecord(
            kind="override",
            engine_id=manifest.engine_id,
            gates={name: {"passed": False} for name in state.failed},
            by=by,
            reason=reason,
        )
        self.put(record)
        return record

    def _read(self, prefix: str) -> list[GateRecord]:
        keys = sorted(key for key in self._bucket.keys(prefix) if key.endswith(".json"))
        return [record for _, record in read_records(self._bucket, GateRecord, keys)]


def require_reason(reason: str) -> str:
    """The reason of an override.

    Raises:
        NoReasonError: It is empty.
    """
    if not reason.strip():
        raise NoReasonError(
            "an engine is let pass for a reason only, which others will read",
            field="--override",
            value=reason,
            remedy="Say why",
        )
    return " ".join(reason.split())


def require_gates(bucket: Bucket, manifest: Manifest) -> None:
    """Check that aliases may point at an engine.

    Raises:
        GateNotPassedError: It failed a gate, and nobody let it pass.
    """
    state = GateRecords(bucket).state(manifest)
    if state.blocks:
        shown = manifest.engine_id[:_SHOWN_DIGITS]
        raise GateNotPassedError(
            f"{state.describe()}: no alias may point at this engine",
            field="engine_id",
            value=shown,
            remedy=f"Build a better one; or take it all the same: `trtforge gate {shown} "
            '--override "reason"`',
        )
