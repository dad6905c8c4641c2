"""What `sync` found and did, and how two JSON documents differ."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trtforge.redaction import redact, redact_value

_SHOWN_CHARACTERS = 60
# A form of thousands of lines: that it changed is all that can be said in a table.
_OPAQUE = ("parameter_openapi_schema",)
_NOTHING = object()


@dataclass(frozen=True)
class Change:
    """One difference between the files and the server.

    Attributes:
        kind: pool, limit, variable, deployment, schedule, automation.
        name: Of the object.
        action: What makes the server match.
        details: `field: old → new`, for an update.
    """

    kind: str
    name: str
    action: Literal["create", "update", "delete"]
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notice:
    """What differs and stays so: somebody else has to decide, or decided.

    Attributes:
        kind: As of a change, or block.
        name: Of the object.
        status: missing: somebody has to make it; skipped: not made, as something is missing; kept:
            changed in the UI, and left so.
        detail: Why, and what to do.
    """

    kind: str
    name: str
    status: Literal["missing", "skipped", "kept"]
    detail: str


@dataclass(frozen=True)
class SyncReport:
    """What a sync did; with `dry_run`, what it would have done.

    Attributes:
        changes: In the order in which they were made.
        notices: What was left alone.
        unchanged: Number of objects that matched already.
        dry_run: Whether nothing was written.
    """

    changes: tuple[Change, ...]
    notices: tuple[Notice, ...]
    unchanged: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> tuple[str, ...]:
    """Lines `field: old → new` for each leaf of `want` and `have` that differs; none if equal."""
    return tuple(_differences("", have, want))


def _differences(path: str, have: Any, want: Any) -> Iterable[str]:
    if have == want:
        return
    if path in _OPAQUE:
        yield f"{path}: the parameters of the flow, or what they take, changed"
    elif isinstance(have, Mapping) and isinstance(want, Mapping):
        for key in sorted(have.keys() | want.keys()):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(inner, have.get(key, _NOTHING), want.get(key, _NOTHING))
    else:
        name = path.rpartition(".")[2]
        yield f"{path}: {_short(name, have)} → {_short(name, want)}"


def _short(name: str, value: Any) -> str:
    if value is _NOTHING:
        return "(nothing)"
    # Whoever put a secret into the server's settings: it is not shown once more.
    text = redact(" ".join(repr(redact_value({name: value})[name]).split()))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
