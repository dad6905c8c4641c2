"""config.json: the keys of each release, so that its strict loader takes them."""

from typing import Any

import pytest

from trtforge.checkpoint import Target, parse_hf_config, trtllm_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"]}

# What `Mapping.__init__` of each release takes; anything else is a TypeError there.
MAPPING_0_16 = {
    "world_size",
    "gpus_per_node",
    "cp_size",
    "tp_size",
    "pp_size",
    "moe_tp_size",
    "moe_ep_size",
}
MAPPING_1_0 = MAPPING_0_16 | {
    "moe_cluster_size",
    "attn_tp_size",
    "attn_cp_size",
    "cp_config",
    "auto_parallel",
}
MAPPING_1_2 = MAPPING_1_0 - {"auto_parallel"} | {"enable_attention_dp", "enable_lm_head_tp_in_adp"}


@pytest.mark.parametrize("hf", [LLAMA, QWEN2], ids=["llama", "qwen2"])
@pytest.mark.parametrize(
    ("version", "keys"),
    [("0.16", MAPPING_0_16), ("1.0", MAPPING_1_0), ("1.1", MAPPING_1_0), ("1.2", MAPPING_1_2)],
)
def test_mapping_has_the_keys_of_the_release(
    version: str, keys: set[str], hf: dict[str, Any]
) -> None:
    mapping = trtllm_config(parse_hf_config(hf), Target(version=version, tp=2, pp=2))["mapping"]
    assert mapping.keys() == keys
    assert (mapping["world_size"], mapping["tp_size"], mapping["pp_size"]) == (4, 2, 2)
    assert mapping.get("auto_parallel", False) is False


@pytest.mark.parametrize("version", ["0.16", "1.0", "1.1"])
def test_older_releases_are_spared_the_keys_they_refuse(version: str) -> None:
    config = trtllm_config(parse_hf_config(QWEN2), Target(version=version))
    assert "mamba_ssm_cache_dtype" not in config["quantization"]
    assert {"mlp_only_layers", "decoder_sparse_step"}.isdisjoint(config)


@pytest.mark.parametrize(
    ("version", "known"), [("0.16", False), ("1.0", True), ("1.1", True), ("1.2", True)]
)
def test_granites_multipliers_came_after_0_16(version: str, known: bool) -> None:
    config = trtllm_config(parse_hf_config(LLAMA), Target(version=version))
    assert ("embedding_multiplier" in config) is known
    assert ("has_partial_lora_mask" in config) is known


def test_the_embedding_is_described_as_it_is_split() -> None:
    target = Target(tp=2, use_parallel_embedding=True, embedding_sharding_dim=1, dtype="float16")
    config = trtllm_config(parse_hf_config(LLAMA), target)
    assert config["use_parallel_embedding"] is True
    assert config["embedding_sharding_dim"] == 1
    assert config["dtype"] == "float16"


def test_qwen3_is_switched_on_by_its_type_and_has_no_bias() -> None:
    config = trtllm_config(parse_hf_config(QWEN3 | {"attention_bias": False}), Target())
    assert config["qwen_type"] == "qwen3"
    assert config["attn_bias"] is False
    assert config["architecture"] == "Qwen3ForCausalLM"
