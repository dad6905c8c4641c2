"""What the format says of a checkpoint: names and shapes of a rank's tensors, keys of a release."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trtforge.checkpoint.config_keys import count

# The decoder layers of the family: `i` counts from 0 on every pipeline rank.
_LAYER = re.compile(r"transformer\.layers\.(0|[1-9][0-9]{0,8})\.")
# Buffers that upstream's converter writes and no loader needs.
_CONSTANT = re.compile(
    r"(.*\.)?(rotary_inv_freq|embed_positions|embed_positions_for_gpt_attention)"
)

OUTPUT = "lm_head.weight"
# Keys of `mapping` by the release that added them; its strict loader refuses those of later ones.
_PORTABLE = {"world_size", "tp_size", "pp_size"}
_SINCE_0_16 = _PORTABLE | {"gpus_per_node", "cp_size", "moe_tp_size", "moe_ep_size"}
_SINCE_1_0 = _SINCE_0_16 | {"moe_cluster_size", "attn_tp_size", "attn_cp_size"}
_SINCE_1_1 = _SINCE_1_0 | {"cp_config", "enable_attention_dp", "enable_lm_head_tp_in_adp"}
# From 0.17 to 1.1 only.
_AUTO_PARALLEL = {"auto_parallel"}


def release_of(mapping: Mapping[str, Any]) -> str:
    """The release whose `mapping` this is: `0.16`, `1.0`, `1.1`, `1.2`, `any` or `unknown`."""
    keys = set(mapping) - {"rank"}
    for release, known in (
        ("any", _PORTABLE),
        ("0.16", _SINCE_0_16),
        ("1.0", _SINCE_1_0 | _AUTO_PARALLEL),
        ("1.2", _SINCE_1_1),
        ("1.1", _SINCE_1_1 | _AUTO_PARALLEL),
    ):
        if keys <= known:
            return release
    return "unknown"


def layers_held(names: Iterable[str]) -> int:
    """How many decoder layers tensors of these names belong to."""
    return len({match[1] for name in names if (match := _LAYER.match(name))})


def is_constant(name: str) -> bool:
    """Whether a tensor is a rotary buffer, computed anew from config.json when loaded."""
    return _CONSTANT.fullmatch(name) is not None


def expected_tensors(
    config: Mapping[str, Any], *, tp: int, layers: int, first: bool, last: bool
) -> dict[str, tuple[int, ...]]:
    """What a rank of a LLaMA-shaped checkpoint holds, the same for all its tensor-parallel ranks.

    Args:
        config: config.json of the checkpoint.
        layers: Of this pipeline rank.
        first, last: Whether it is the first and the last pipeline rank.

    Raises:
        ConfigValueError: config.json lacks a number that a shape is made of.
    """
    hidden, heads, vocab = (
        count(config, key) for key in ("hidden_size", "num_attention_heads", "vocab_size")
    )
    kv_heads, head, mlp = (
        count(config, key) for key in ("num_key_value_heads", "head_size", "intermediate_size")
    )
    qkv = (heads // tp + 2 * max(kv_heads // tp, 1)) * head
    attention_bias = bool(config.get("attn_bias"))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "attention.qkv.weight": (qkv, hidden),
        "attention.dense.weight": (hidden, heads * head // tp),
        "post_layernorm.weight": (hidden,),
        "mlp.fc.weight": (mlp // tp, hidden),
        "mlp.gate.weight": (mlp // tp, hidden),
        "mlp.proj.weight": (hidden, mlp // tp),
    }
    if attention_bias:
        layer["attention.qkv.bias"] = (qkv,)
    if attention_bias and "qwen_type" not in config:
        layer["attention.dense.bias"] = (hidden,)
    # Upstream leaves qk_layernorm false in Qwen3's config.json and goes by the type.
    if config.get("qk_layernorm") or config.get("qwen_type") == "qwen3":
        layer["attention.q_layernorm.weight"] = layer["attention.k_layernorm.weight"] = (head,)
    expected = {
        f"transformer.layers.{index}.{name}": shape
        for index in range(layers)
        for name, shape in layer.items()
    }
    parallel = bool(config.get("use_parallel_embedding"))
    by_hidden = config.get("embedding_sharding_dim") == 1
    padded = -(-vocab // tp)
    if first:
        expected["transformer.vocab_embedding.weight"] = (
            (vocab, hidden)
            if not parallel
            else (vocab, hidden // tp)
            if by_hidden
            else (padded, hidden)
        )
    if last:
        expected["transformer.ln_f.weight"] = (hidden,)
        expected[OUTPUT] = (padded, hidden)
    return expected


def may_share_output(config: Mapping[str, Any], tp: int) -> bool:
    """Whether loaders accept a checkpoint without output matrix: the embedding has its shape."""
    by_vocabulary = (
        bool(config.get("use_parallel_embedding")) and config.get("embedding_sharding_dim") != 1
    )
    return config.get("tie_word_embeddings") is True and (tp == 1 or by_vocabulary)
