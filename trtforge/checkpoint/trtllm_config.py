"""config.json of a TensorRT-LLM checkpoint, with the keys of the release that will load it.

Source: PretrainedConfig.to_dict() of TensorRT-LLM with the extras of LLaMAConfig and QWenConfig.
`mapping` is read back as strict keyword arguments (`Mapping(**keys)`), so a key of another release
is a TypeError there. Elsewhere a missing key falls back to its default and an unknown one becomes
an attribute, with a warning.
"""

from collections.abc import Mapping
from typing import Any

from trtforge.checkpoint.families import FAMILIES
from trtforge.checkpoint.hf_config import ModelConfig
from trtforge.checkpoint.target import Target

GPUS_PER_NODE = 8

# Keys that one release line has or lacks, by section ("" is the top level).
_ABSENT: Mapping[str, Mapping[str, frozenset[str]]] = {
    "0.16": {
        "": frozenset(
            {
                "attention_multiplier",
                "decoder_sparse_step",
                "embedding_multiplier",
                "has_partial_lora_mask",
                "mlp_only_layers",
                "output_multiplier_scale",
                "residual_multiplier",
            }
        ),
        "mapping": frozenset(
            {
                "attn_cp_size",
                "attn_tp_size",
                "auto_parallel",
                "cp_config",
                "enable_attention_dp",
                "enable_lm_head_tp_in_adp",
                "moe_cluster_size",
            }
        ),
        "quantization": frozenset({"mamba_ssm_cache_dtype"}),
    },
    # Between 1.0 and 1.1 single keys came that cannot be dated for certain. Those whose absence
    # every release of the line accepts are left out.
    "1.0": {
        "": frozenset({"decoder_sparse_step", "mlp_only_layers"}),
        "mapping": frozenset({"enable_attention_dp", "enable_lm_head_tp_in_adp"}),
        "quantization": frozenset({"mamba_ssm_cache_dtype"}),
    },
    "1.2": {"mapping": frozenset({"auto_parallel"})},
}


def trtllm_config(model: ModelConfig, target: Target) -> dict[str, Any]:
    """The whole config.json of a model's checkpoint, ready for `json.dumps`."""
    config = _newest(model, target)
    for section, keys in _ABSENT[target.release].items():
        part = config[section] if section else config
        for key in keys & part.keys():
            del part[key]
    return config


def _newest(model: ModelConfig, target: Target) -> dict[str, Any]:
    """Every key that any release has."""
    family = FAMILIES[model.architecture]
    extras = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in family.config_extras.items()
    }
    return extras | {
        "architecture": model.architecture,
        "attn_bias": model.attention_bias,
        "disable_weight_only_quant_plugin": False,
        "dtype": target.dtype,
        "embedding_sharding_dim": target.embedding_sharding_dim,
        "head_size": model.head_size,
        "hidden_act": model.hidden_act,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "logits_dtype": "float32",
        "mapping": _mapping(target),
        "max_position_embeddings": model.max_position_embeddings,
        "mlp_bias": False,
        "moe": _no_moe(family.moe_normalization_mode),
        "norm_epsilon": model.norm_epsilon,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "position_embedding_type": "rope_gpt_neox",
        "qk_layernorm": False,
        "quantization": _no_quantization(),
        "rotary_base": model.rotary_base,
        "rotary_embedding_dim": model.head_size,
        "rotary_scaling": None if model.rotary_scaling is None else dict(model.rotary_scaling),
        "runtime_defaults": None,
        "tie_word_embeddings": model.tie_word_embeddings,
        "use_parallel_embedding": target.use_parallel_embedding,
        "vocab_size": model.vocab_size,
    }


def _mapping(target: Target) -> dict[str, Any]:
    return {
        "attn_cp_size": -1,
        "attn_tp_size": -1,
        "auto_parallel": False,
        "cp_config": {},
        "cp_size": 1,
        "enable_attention_dp": False,
        "enable_lm_head_tp_in_adp": False,
        "gpus_per_node": GPUS_PER_NODE,
        "moe_cluster_size": 1,
        "moe_ep_size": 1,
        "moe_tp_size": target.tp,
        "pp_size": target.pp,
        "tp_size": target.tp,
        "world_size": target.ranks,
    }


def _no_moe(normalization_mode: int | None) -> dict[str, Any]:
    return {
        "device_limited_n_group": 0,
        "device_limited_routed_scaling_factor": 1.0,
        "device_limited_topk_group": 0,
        "normalization_mode": normalization_mode,
        "num_experts": 0,
        "shared_expert_intermediate_size": 0,
        "sparse_mixer_epsilon": 0.01,
        "top_k": 0,
        "tp_mode": 0,
    }


def _no_quantization() -> dict[str, Any]:
    return {
        "clamp_val": None,
        "exclude_modules": None,
        "group_size": 128,
        "has_zero_point": False,
        "kv_cache_quant_algo": None,
        "mamba_ssm_cache_dtype": None,
        "pre_quant_scale": False,
        "quant_algo": None,
        "smoothquant_val": 0.5,
        "use_meta_recipe": False,
    }
