"""JSON from files of unknown origin: as strict as the safetensors library, and never recursive."""

import json
import re
from typing import Any, NoReturn

# What does not fit into 64 bits is no count; and the library reads -0 as a fraction.
_MAX_DIGITS = 19
# A value costs up to 300 bytes of memory, however short its text. The header of a file with 100 000
# tensors has 800 000 of them.
_MAX_VALUES = 1_000_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object encoded in `raw`, as UTF-8.

    Raises:
        ValueError: Not UTF-8, not JSON, no object; a key given twice; NaN or infinity; a whole
            number of 20 digits or more; more than a million values. The message reads on from
            the name of the thing: `is not …`.
    """
    if sum(raw.count(mark) for mark in b"{[,") > _MAX_VALUES:
        raise ValueError(f"has more than {_MAX_VALUES} values")
    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole_number,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"is not valid JSON (byte {error.start} is not UTF-8)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("is not valid JSON (nested too deeply)") from error
    if not isinstance(parsed, dict):
        raise ValueError("is not a JSON object")
    return parsed


def is_text(value: object, max_characters: int) -> bool:
    """Whether `value` is a text of bounded length that has a UTF-8 form."""
    return (
        isinstance(value, str)
        and len(value) <= max_characters
        and not _LONE_SURROGATE.search(value)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"names {name[:200]!r} twice")
            seen.add(name)
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or digits == "-0":
        raise ValueError(f"has the number {digits[:40]}, which is no count")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"is not valid JSON ({name})")
