"""Single keys of a Hugging Face config.json: read, checked, and named when they are wrong."""

import math
from collections.abc import Mapping
from typing import Any

from trtforge.errors import InputError

CONFIG_NAME = "config.json"


class ConfigValueError(InputError):
    """A key of config.json is missing, has the wrong type or an impossible value."""


def count(raw: Mapping[str, Any], key: str) -> int:
    """A positive whole number."""
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise value_error(key, value, "must be a positive whole number")
    return value


def positive(raw: Mapping[str, Any], key: str, prefix: str = "") -> float:
    """A positive finite number; `prefix` is where `raw` lies within the file."""
    value = raw.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if 0 < number < math.inf:
            return number
    raise value_error(prefix + key, value, "must be a positive number")


def flag(raw: Mapping[str, Any], key: str) -> bool:
    """true or false; absent and null mean false."""
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise value_error(key, value, "must be true or false")
    return bool(value)


def value_error(key: str, value: object, problem: str) -> ConfigValueError:
    """The error for a key whose value cannot be right."""
    return ConfigValueError(
        problem,
        field=config_field(key),
        value=value,
        remedy=f"Correct {CONFIG_NAME}, or take it from the model's original repository",
    )


def config_field(key: str) -> str:
    """How errors name a key of config.json."""
    return f"{CONFIG_NAME}: {key}"
