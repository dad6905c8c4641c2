"""Rotary embeddings in a Hugging Face config, in either dialect.

Up to version 4, transformers writes `rope_theta` beside `rope_scaling`; from 5 on `rope_parameters`
holds both. TensorRT-LLM's converter reads only the first dialect and falls back to base 10000
without scaling, and without a word, which gives a wrong model.
"""

from collections.abc import Mapping
from typing import Any

from trtforge.checkpoint.config_keys import config_field, positive
from trtforge.errors import InputError

# What an absent `rope_theta` means in transformers' configs of the supported families.
_DEFAULT_BASE = 10000.0
# Keys each kind of scaling must have: without them TensorRT-LLM fails or takes defaults of its
# own. longrope, su and mrope belong to other families.
_SCALING_KEYS: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


class RopeError(InputError):
    """A rotary embedding that TensorRT-LLM would compute otherwise than transformers."""


def read_rope(raw: Mapping[str, Any]) -> tuple[float, Mapping[str, Any] | None]:
    """The base, and the scaling as the model gives it (None when there is none).

    Raises:
        RopeError: A kind that is not supported, or two dialects that contradict each other.
        ConfigValueError: A number is missing or not positive.
    """
    bases = {"rope_theta": raw["rope_theta"]} if raw.get("rope_theta") is not None else {}
    scalings: dict[str, Mapping[str, Any] | None] = {}
    _refuse_partial(raw, "")
    for key in ("rope_parameters", "rope_scaling"):
        if raw.get(key) is not None:
            parameters = dict(_one_set(raw, key))
            if (base := parameters.pop("rope_theta", None)) is not None:
                bases[f"{key}.rope_theta"] = base
            scalings[key] = _scaling(parameters, key)
    _agree(bases)
    _agree(scalings)
    base = next((positive({key: value}, key) for key, value in bases.items()), _DEFAULT_BASE)
    return base, next(iter(scalings.values()), None)


def _one_set(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw[key]
    if not isinstance(value, dict) or any(isinstance(part, dict) for part in value.values()):
        raise RopeError(
            "one set of rotary parameters for all layers is expected",
            field=config_field(key),
            value=value,
            remedy="Models with different rotary embeddings per layer are not supported",
        )
    return value


def _scaling(parameters: dict[str, Any], key: str) -> Mapping[str, Any] | None:
    _refuse_partial(parameters, f"{key}.")
    parameters.pop("partial_rotary_factor", None)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return None
    if kind not in _SCALING_KEYS:
        raise RopeError(
            "this kind of rotary embedding is not supported for this architecture",
            field=config_field(f"{key}.rope_type"),
            value=kind,
            remedy=f"Supported: default, {', '.join(_SCALING_KEYS)}",
        )
    for name in _SCALING_KEYS[kind]:
        positive(parameters, name, prefix=f"{key}.")
    return parameters


def _refuse_partial(raw: Mapping[str, Any], prefix: str) -> None:
    if (part := raw.get("partial_rotary_factor")) not in (None, 1):
        raise RopeError(
            "rotating only part of each head is not supported for this architecture",
            field=config_field(f"{prefix}partial_rotary_factor"),
            value=part,
            remedy="Use a model that rotates whole heads",
        )


def _agree(readings: Mapping[str, object]) -> None:
    keys = list(readings)
    for other in keys[1:]:
        if readings[other] != readings[keys[0]]:
            raise RopeError(
                f"it contradicts {keys[0]} = {readings[keys[0]]!r}",
                field=config_field(other),
                value=readings[other],
                remedy="Remove the one that is wrong from config.json",
            )
