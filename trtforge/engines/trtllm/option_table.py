"""The options of `trtllm-build`, one table per release. Standard library only.

A table is JSON, a list with one row per option, as `argparse` knows it: `flags`, `dest`, `type`,
`default`, `choices`, `nargs`, `kind`. That of 0.16 is dumped from upstream's parser; those of 1.0
(for 1.0 and 1.1) and 1.2 are read from upstream's sources.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

_TABLES = Path(__file__).with_name("tables")
SUPPRESSED = "==SUPPRESS=="
"""The default of an option that does not exist for upstream's code unless it is given."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: What it is called in `engine.options`: its first flag without the dashes.
        aliases: Other names of it.
        type: `str`, `int`, `flag` (no value), or `KVCacheType`.
        default: What upstream takes when it is not given.
        choices: The values it may have; empty when any.
        several: Takes one value or more.
    """

    name: str
    aliases: tuple[str, ...]
    type: Literal["str", "int", "flag", "KVCacheType"]
    default: Any
    choices: tuple[str, ...]
    several: bool

    @property
    def is_switch(self) -> bool:
        """Whether its values are `enable` and `disable`."""
        return set(self.choices) == {"enable", "disable"}


@cache
def load_table(name: str) -> Mapping[str, Option]:
    """The options of the table `name` (`1.2`, `1.0`, `0.16`), by name, in upstream's order."""
    options = [_option(row) for row in raw_table(name)]
    return MappingProxyType({option.name: option for option in options})


def raw_table(name: str) -> "list[dict[str, Any]]":
    """The rows of a table as they are written down."""
    rows: list[dict[str, Any]] = json.loads((_TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return rows


def _option(row: "dict[str, Any]") -> Option:
    first, *others = (flag.removeprefix("--") for flag in row["flags"])
    flag = row["kind"] == "_StoreTrueAction"
    return Option(
        name=first,
        aliases=tuple(others),
        type="flag" if flag else row["type"] or "str",
        default=row["default"],
        choices=tuple(row["choices"] or ()),
        several=row["nargs"] == "+",
    )
