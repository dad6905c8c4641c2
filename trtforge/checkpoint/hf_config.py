"""A Hugging Face config.json, in either dialect, as the few facts conversion needs.

Up to version 4, transformers writes `rope_theta`, `rope_scaling` and `torch_dtype`; from 5 on
`rope_parameters` and `dtype` (see `trtforge.checkpoint.rope`).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trtforge.checkpoint.config_keys import (
    CONFIG_NAME,
    config_field,
    count,
    flag,
    positive,
    value_error,
)
from trtforge.checkpoint.families import FAMILIES, Dim, Family
from trtforge.checkpoint.regular_file import read_whole
from trtforge.checkpoint.rope import read_rope
from trtforge.errors import InputError

_HIDDEN_ACT = "silu"
_MAX_CONFIG_BYTES = 4 << 20


class MissingConfigError(InputError):
    """The model directory has no config.json."""


class InvalidConfigError(InputError):
    """config.json is not a JSON object."""


class UnsupportedArchitectureError(InputError):
    """An architecture that this version cannot convert."""


class QuantizedModelError(InputError):
    """The model is already quantised; conversion starts from full-precision weights."""


class UnsupportedActivationError(InputError):
    """An activation other than the gated SiLU of the Llama family."""


class MlpBiasError(InputError):
    """Biases in the MLP, which TensorRT-LLM's Llama converter drops."""


class HeadCountError(InputError):
    """The query heads cannot be shared out evenly among the key/value heads."""


@dataclass(frozen=True)
class ModelConfig:
    """What a model is, whichever transformers version saved it.

    Attributes:
        rotary_scaling: Verbatim from the model, without `rope_theta`; None when not scaled.
        attention_bias, dense_bias: Whether q/k/v, and the attention output, have biases.
        sliding_window: Attention window in tokens in effect; not stored in a checkpoint.
        stored_dtype: What the config says the weights are stored in; the files decide.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    max_position_embeddings: int
    hidden_act: str
    norm_epsilon: float
    rotary_base: float
    rotary_scaling: Mapping[str, Any] | None
    attention_bias: bool
    dense_bias: bool
    tie_word_embeddings: bool
    sliding_window: int | None
    stored_dtype: str | None

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    def extent(self, dim: Dim) -> int:
        """The length of a dimension in this model."""
        return {
            Dim.VOCAB: self.vocab_size,
            Dim.HIDDEN: self.hidden_size,
            Dim.INTERMEDIATE: self.intermediate_size,
            Dim.Q: self.heads * self.head_size,
            Dim.KV: self.kv_heads * self.head_size,
            Dim.HEAD: self.head_size,
        }[dim]


def read_hf_config(model_dir: Path) -> ModelConfig:
    """Read and check `config.json` of a Hugging Face model directory.

    Raises:
        MissingConfigError, InvalidConfigError: There is none, or it is not JSON.
        InputError: What `read_whole` and `parse_hf_config` raise.
    """
    path = model_dir / CONFIG_NAME
    if not os.path.lexists(path):
        raise MissingConfigError(
            f"there is no {CONFIG_NAME} in the model directory",
            field="model_dir",
            value=str(model_dir),
            remedy="Give a directory as saved by transformers or downloaded from the Hub",
        )
    try:
        raw = json.loads(read_whole(path, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise InvalidConfigError(
            f"not valid JSON ({error})",
            field="file",
            value=str(path),
            remedy="Download the file again",
        ) from error
    if not isinstance(raw, dict):
        raise InvalidConfigError(
            f"a JSON object is expected, not {type(raw).__name__}",
            field="file",
            value=str(path),
            remedy="Download the file again",
        )
    return parse_hf_config(raw)


def parse_hf_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Check a parsed Hugging Face config and translate it.

    Raises:
        UnsupportedArchitectureError, QuantizedModelError, UnsupportedActivationError,
        MlpBiasError, HeadCountError, RopeError, ConfigValueError: What the model is
            refused for; each names the key, its value and what to do.
    """
    family = FAMILIES[_architecture(raw)]
    _refuse_unconvertible(raw)
    heads = count(raw, "num_attention_heads")
    kv_heads = _kv_heads(raw, family, heads)
    hidden_size = count(raw, "hidden_size")
    rotary_base, rotary_scaling = read_rope(raw)
    attention_bias = family.attention_bias == "always" or (
        family.attention_bias == "config"
        and any(flag(raw, key) for key in ("attention_bias", "bias"))
    )
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=count(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=count(raw, "intermediate_size"),
        layers=count(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=_head_size(raw, hidden_size, heads),
        max_position_embeddings=count(raw, "max_position_embeddings"),
        hidden_act=_HIDDEN_ACT,
        norm_epsilon=positive(raw, "rms_norm_eps"),
        rotary_base=rotary_base,
        rotary_scaling=rotary_scaling,
        attention_bias=attention_bias,
        dense_bias=attention_bias and family.dense_bias == "attention_bias",
        tie_word_embeddings=flag(raw, "tie_word_embeddings"),
        sliding_window=_sliding_window(raw),
        stored_dtype=raw.get("dtype") or raw.get("torch_dtype"),
    )


def _architecture(raw: Mapping[str, Any]) -> str:
    match raw.get("architectures"):
        case [str(name), *_]:
            pass
        case other:
            raise value_error(
                "architectures", other, "must be a list that starts with the architecture's name"
            )
    if name not in FAMILIES:
        near = get_close_matches(name, FAMILIES, n=1, cutoff=0.9)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UnsupportedArchitectureError(
            "this architecture cannot be converted",
            field=config_field("architectures"),
            value=name,
            remedy=f"{hint}Supported: {', '.join(FAMILIES)}",
        )
    return name


def _refuse_unconvertible(raw: Mapping[str, Any]) -> None:
    if quantization := raw.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise QuantizedModelError(
            "the model is quantised already",
            field=config_field("quantization_config"),
            value=method or quantization,
            remedy="Use the unquantised model it was made from (bfloat16, float16 or float32)",
        )
    if (act := raw.get("hidden_act")) != _HIDDEN_ACT:
        raise UnsupportedActivationError(
            f"only {_HIDDEN_ACT!r} is supported",
            field=config_field("hidden_act"),
            value=act,
            remedy="Use a model of the Llama family with the gated SiLU activation",
        )
    if flag(raw, "mlp_bias"):
        raise MlpBiasError(
            "TensorRT-LLM's Llama has no place for the biases of the MLP",
            field=config_field("mlp_bias"),
            value=True,
            remedy="Use a model without mlp_bias",
        )


def _kv_heads(raw: Mapping[str, Any], family: Family, heads: int) -> int:
    key = "num_key_value_heads"
    if key not in raw and family.default_kv_heads is not None:
        kv_heads = family.default_kv_heads
    else:
        kv_heads = heads if raw.get(key) is None else count(raw, key)
    if heads % kv_heads:
        raise HeadCountError(
            f"{heads} attention heads cannot be shared out evenly among {kv_heads}",
            field=config_field(key),
            value=kv_heads,
            remedy="num_attention_heads must be a multiple of it; correct config.json",
        )
    return kv_heads


def _head_size(raw: Mapping[str, Any], hidden_size: int, heads: int) -> int:
    if raw.get("head_dim") is not None:
        return count(raw, "head_dim")
    if hidden_size % heads:
        raise value_error(
            "hidden_size", hidden_size, f"must be a multiple of {heads} heads without head_dim"
        )
    return hidden_size // heads


def _sliding_window(raw: Mapping[str, Any]) -> int | None:
    # Qwen2 names a window and switches it off with a key of its own.
    if raw.get("sliding_window") is None or raw.get("use_sliding_window") is False:
        return None
    return count(raw, "sliding_window")
