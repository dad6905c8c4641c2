"""config.json of a TensorRT-LLM checkpoint, as version 1.2 writes it.

Source: PretrainedConfig.to_dict() of TensorRT-LLM 1.2 with the extras of LLaMAConfig and
QWenConfig. `mapping` is read back as strict keyword arguments, so its keys are those of one
version: this file does not load on 0.16.
"""

from typing import Any

from trtforge.checkpoint.families import FAMILIES
from trtforge.checkpoint.hf_config import ModelConfig

GPUS_PER_NODE = 8


def trtllm_config(model: ModelConfig, *, dtype: str, tp: int, pp: int) -> dict[str, Any]:
    """The whole config.json for a model split over `tp` × `pp` ranks, ready for `json.dumps`.

    Args:
        dtype: TensorRT-LLM's name of the weights' type, such as `bfloat16`.
    """
    family = FAMILIES[model.architecture]
    extras = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in family.config_extras.items()
    }
    return extras | {
        "architecture": model.architecture,
        "attn_bias": model.attention_bias,
        "disable_weight_only_quant_plugin": False,
        "dtype": dtype,
        "embedding_sharding_dim": 0,
        "head_size": model.head_size,
        "hidden_act": model.hidden_act,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "logits_dtype": "float32",
        "mapping": _mapping(tp, pp),
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
        "use_parallel_embedding": False,
        "vocab_size": model.vocab_size,
    }


def _mapping(tp: int, pp: int) -> dict[str, Any]:
    return {
        "attn_cp_size": -1,
        "attn_tp_size": -1,
        "cp_config": {},
        "cp_size": 1,
        "enable_attention_dp": False,
        "enable_lm_head_tp_in_adp": False,
        "gpus_per_node": GPUS_PER_NODE,
        "moe_cluster_size": 1,
        "moe_ep_size": 1,
        "moe_tp_size": tp,
        "pp_size": pp,
        "tp_size": tp,
        "world_size": tp * pp,
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
