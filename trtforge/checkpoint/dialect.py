"""config.json of newer transformers, in the words of the older that TensorRT-LLM's scripts use.

transformers 5 writes `rope_parameters` and `dtype`. The versions that releases pin (4.4x to 4.57)
ignore them without a word: rotary base 10000, no scaling, float16, which gives a wrong model.
"""

from collections.abc import Mapping
from typing import Any

from trtforge.checkpoint.config_keys import config_field
from trtforge.checkpoint.rope import RopeError


def normalised_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with `rope_theta`, `rope_scaling` and `torch_dtype`, as up to version 4.

    What is in the old dialect already stays as it is. `text_config` of a multimodal model is
    treated likewise.

    Raises:
        RopeError: The dialects contradict each other, or layers have different embeddings, which
            the old dialect has no words for.
    """
    config = dict(raw)
    dtype = config.pop("dtype", None)
    if dtype is not None:
        config["torch_dtype"] = dtype
    parameters = config.pop("rope_parameters", None)
    if parameters is not None:
        _write_back(config, _one_set(parameters))
    if isinstance(config.get("text_config"), Mapping):
        config["text_config"] = normalised_config(config["text_config"])
    return config


def _one_set(parameters: object) -> dict[str, Any]:
    if not isinstance(parameters, Mapping) or any(
        isinstance(value, Mapping) for value in parameters.values()
    ):
        raise RopeError(
            "one set of rotary parameters for all layers is expected",
            field=config_field("rope_parameters"),
            value=parameters,
            remedy="Use the model's config.json as saved by transformers 4",
        )
    return dict(parameters)


def _write_back(config: dict[str, Any], parameters: dict[str, Any]) -> None:
    for key in ("rope_theta", "partial_rotary_factor"):
        if (value := parameters.pop(key, None)) is not None:
            _put(config, key, value)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        _put(config, "rope_scaling", parameters)
    elif not _is_unscaled(config.get("rope_scaling")):
        raise _contradiction("rope_scaling", config["rope_scaling"], "default")
    else:
        config["rope_scaling"] = None


def _is_unscaled(scaling: object) -> bool:
    return scaling is None or (
        isinstance(scaling, Mapping)
        and scaling.get("rope_type", scaling.get("type", "default")) == "default"
    )


def _put(config: dict[str, Any], key: str, value: object) -> None:
    if config.get(key) not in (None, value):
        raise _contradiction(key, config[key], value)
    config[key] = value


def _contradiction(key: str, old: object, new: object) -> RopeError:
    return RopeError(
        f"it contradicts rope_parameters, where it is {new!r}",
        field=config_field(key),
        value=old,
        remedy="Remove the one that is wrong from config.json",
    )
