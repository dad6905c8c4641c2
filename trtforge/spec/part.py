"""What the parts of a spec, and of a catalogue, have in common: labels, order, their errors."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

_IN_CAPITALS = {"tp", "pp", "kl", "ttft", "itl"}
_UNITS = {"s": "(s)", "ms": "(ms)"}


def _label(name: str, _: object) -> str:
    """What the run form calls a field: `Max seq len`, `TTFT (ms)`."""
    words = [word.upper() if word in _IN_CAPITALS else word for word in name.split("_")]
    words[1:] = [_UNITS.get(word, word) for word in words[1:]]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


class Part(BaseModel):
    """One part of a spec: immutable, and strict about its keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        field_title_generator=_label,
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            require_known(data, [info.alias or name for name, info in cls.model_fields.items()])
        return data


class FoundError(ValueError):
    """A validator's finding; `field` is relative to the model that raised it."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy


def require_known(data: Mapping[Any, Any], known: list[str], within: str = "") -> None:
    """Refuse keys that are not among `known`; `within` goes before the key in the message."""
    for key, value in data.items():
        if key not in known:
            raise FoundError(f"{within}{key}", value, "unknown key", did_you_mean(str(key), known))


def at(position: int) -> dict[str, Any]:
    """Where the run form shows a field; without it PostgreSQL orders them by length of name."""
    return {"position": position}


def did_you_mean(word: str, known: list[str]) -> str:
    """`Did you mean 'x'?`, or the known words when none is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}"
