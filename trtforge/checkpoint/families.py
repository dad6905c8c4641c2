"""The model families that can be converted, as data: name map, config rule, absent-key rule.

The name map is TensorRT-LLM's own (1.2: models/model_weights_loader.py and the tllm_to_hf
tables of models/llama and models/qwen). `fc` is the *gate* projection and `gate` the *up*
projection: the names mislead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Literal

Condition = Literal["always", "attention_bias", "dense_bias", "qk_layernorm"]
Split = Literal["none", "rows", "columns", "embedding"]


class Dim(Enum):
    """A tensor dimension, by meaning."""

    VOCAB = "vocab_size"
    HIDDEN = "hidden_size"
    INTERMEDIATE = "intermediate_size"
    Q = "query heads × head size"
    KV = "key/value heads × head size"
    HEAD = "head size"


@dataclass(frozen=True)
class Source:
    """A Hugging Face tensor and the shape it must have."""

    name: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Rule:
    """One TensorRT-LLM tensor: the rows of its sources, one after the other.

    Attributes:
        split: Over the tensor-parallel ranks: not at all; by rows or columns of each source, by
            the meaning of that dimension; or as the target wants its input embedding.
        if_tied: The source to copy instead when input and output embeddings are one tensor.
    """

    name: str
    sources: tuple[Source, ...]
    split: Split = "none"
    condition: Condition = "always"
    if_tied: Source | None = None


@dataclass(frozen=True)
class Family:
    """What distinguishes one architecture from another.

    Attributes:
        architecture: `architectures[0]` of the Hugging Face config.
        before, layer, after: Tensors before, in each of, and after the layers. `layer` names are
            relative to `transformer.layers.<i>.` and `model.layers.<i>.`.
        attention_bias: Whether q, k, v have a bias: always, never, or as the config says.
        dense_bias: Whether the attention output has one: never, or where q, k, v have one.
        qk_layernorm: Whether queries and keys are normalised, head by head.
        since: The first release line that knows it.
        checked: Whether what is written was compared with what upstream's converter writes.
        default_kv_heads: What an absent `num_key_value_heads` means; None: as many as heads.
        config_extras: Keys of TensorRT-LLM's config.json that only this family has.
        moe_normalization_mode: Its value in the (unused) `moe` section.
    """

    architecture: str
    before: tuple[Rule, ...]
    layer: tuple[Rule, ...]
    after: tuple[Rule, ...]
    attention_bias: Literal["config", "always", "never"] = "config"
    dense_bias: Literal["never", "attention_bias"] = "attention_bias"
    qk_layernorm: bool = False
    since: str = "0.16"
    checked: bool = True
    default_kv_heads: int | None = None
    config_extras: Mapping[str, Any] = field(default_factory=dict)
    moe_normalization_mode: int | None = None


_EMBEDDING = Source("model.embed_tokens.weight", (Dim.VOCAB, Dim.HIDDEN))

_BEFORE = (Rule("transformer.vocab_embedding.weight", (_EMBEDDING,), split="embedding"),)
_LAYER = (
    Rule("input_layernorm.weight", (Source("input_layernorm.weight", (Dim.HIDDEN,)),)),
    Rule(
        "attention.qkv.weight",
        (
            Source("self_attn.q_proj.weight", (Dim.Q, Dim.HIDDEN)),
            Source("self_attn.k_proj.weight", (Dim.KV, Dim.HIDDEN)),
            Source("self_attn.v_proj.weight", (Dim.KV, Dim.HIDDEN)),
        ),
        split="rows",
    ),
    Rule(
        "attention.qkv.bias",
        (
            Source("self_attn.q_proj.bias", (Dim.Q,)),
            Source("self_attn.k_proj.bias", (Dim.KV,)),
            Source("self_attn.v_proj.bias", (Dim.KV,)),
        ),
        split="rows",
        condition="attention_bias",
    ),
    *(
        Rule(
            f"attention.{part}_layernorm.weight",
            (Source(f"self_attn.{part}_norm.weight", (Dim.HEAD,)),),
            condition="qk_layernorm",
        )
        for part in "qk"
    ),
    Rule(
        "attention.dense.weight",
        (Source("self_attn.o_proj.weight", (Dim.HIDDEN, Dim.Q)),),
        split="columns",
    ),
    Rule(
        "attention.dense.bias",
        (Source("self_attn.o_proj.bias", (Dim.HIDDEN,)),),
        condition="dense_bias",
    ),
    Rule("post_layernorm.weight", (Source("post_attention_layernorm.weight", (Dim.HIDDEN,)),)),
    Rule(
        "mlp.fc.weight",
        (Source("mlp.gate_proj.weight", (Dim.INTERMEDIATE, Dim.HIDDEN)),),
        split="rows",
    ),
    Rule(
        "mlp.gate.weight",
        (Source("mlp.up_proj.weight", (Dim.INTERMEDIATE, Dim.HIDDEN)),),
        split="rows",
    ),
    Rule(
        "mlp.proj.weight",
        (Source("mlp.down_proj.weight", (Dim.HIDDEN, Dim.INTERMEDIATE)),),
        split="columns",
    ),
)
_AFTER = (
    Rule("transformer.ln_f.weight", (Source("model.norm.weight", (Dim.HIDDEN,)),)),
    Rule(
        "lm_head.weight",
        (Source("lm_head.weight", (Dim.VOCAB, Dim.HIDDEN)),),
        split="rows",
        if_tied=_EMBEDDING,
    ),
)

_LLAMA_EXTRAS: Mapping[str, Any] = {
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "fc_after_embed": False,
    "has_partial_lora_mask": False,
    "layer_idx_offset": 0,
    "output_multiplier_scale": 1.0,
    "remove_duplicated_kv_heads": False,
    "residual_mlp": False,
    "residual_multiplier": 1.0,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
}
_QWEN_EXTRAS: dict[str, Any] = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": (),
    "moe_intermediate_size": 0,
    "moe_shared_expert_intermediate_size": 0,
    "num_labels": 1,
    "seq_length": 8192,
    "use_logn_attn": False,
}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.architecture: family
        for family in (
            Family("LlamaForCausalLM", _BEFORE, _LAYER, _AFTER, config_extras=_LLAMA_EXTRAS),
            Family(
                "MistralForCausalLM",
                _BEFORE,
                _LAYER,
                _AFTER,
                default_kv_heads=8,
                config_extras=_LLAMA_EXTRAS,
            ),
            Family(
                "Qwen2ForCausalLM",
                _BEFORE,
                _LAYER,
                _AFTER,
                attention_bias="always",
                dense_bias="never",
                default_kv_heads=32,
                config_extras=_QWEN_EXTRAS | {"qwen_type": "qwen2"},
                moe_normalization_mode=0,
            ),
            # 1.x models/qwen: `qwen_type` switches the norms on; the config's own qk_layernorm
            # stays false.
            Family(
                "Qwen3ForCausalLM",
                _BEFORE,
                _LAYER,
                _AFTER,
                attention_bias="never",
                dense_bias="never",
                qk_layernorm=True,
                since="1.0",
                checked=False,
                default_kv_heads=32,
                config_extras=_QWEN_EXTRAS | {"qwen_type": "qwen3"},
                moe_normalization_mode=0,
            ),
        )
    }
)
