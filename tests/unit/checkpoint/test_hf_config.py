"""The two dialects of a Hugging Face config say the same thing."""

from typing import Any

import pytest

from trtforge.checkpoint import ModelConfig, parse_hf_config
from trtforge.checkpoint.config_keys import ConfigValueError
from trtforge.checkpoint.rope import RopeError

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 176,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-6,
    "vocab_size": 259,
}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 128,
    "rope_type": "llama3",
}


def parse(**keys: Any) -> ModelConfig:
    return parse_hf_config(BASE | keys)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        (
            {"rope_theta": 500000, "rope_scaling": LLAMA3},
            {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}},
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"type": "linear", "factor": 2, "rope_theta": 1e4}},
        ),
        (
            {"torch_dtype": "float16", "rope_theta": 1e4, "rope_scaling": None},
            {"dtype": "float16", "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        ),
    ],
)
def test_both_dialects_give_the_same_model(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert parse(**old) == parse(**new)


def test_scaling_is_kept_verbatim_without_the_base() -> None:
    model = parse(rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    assert (model.rotary_base, model.rotary_scaling) == (500000.0, LLAMA3)


def test_without_any_rotary_key_transformers_defaults_apply() -> None:
    assert (parse().rotary_base, parse().rotary_scaling) == (10000.0, None)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"factor": 32.0}},
    ],
)
def test_dialects_that_contradict_each_other_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(RopeError, match="contradicts"):
        parse(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        {"rope_scaling": "linear"},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ],
)
def test_rotary_embeddings_of_other_families_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(RopeError):
        parse(**keys)


@pytest.mark.parametrize("theta", ["10000", -1, 0, float("nan"), float("inf"), True, 10**400])
def test_an_impossible_base_is_refused(theta: object) -> None:
    with pytest.raises(ConfigValueError, match="rope_theta"):
        parse(rope_theta=theta)


def test_head_size_is_head_dim_or_else_hidden_size_over_heads() -> None:
    assert parse(head_dim=32).head_size == 32
    assert parse(head_dim=None).head_size == 16
    with pytest.raises(ConfigValueError, match=r"hidden_size = 66: must be a multiple of 4"):
        parse(hidden_size=66)


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("LlamaForCausalLM", {}, 64),
        ("MistralForCausalLM", {}, 8),
        ("Qwen2ForCausalLM", {}, 32),
        ("MistralForCausalLM", {"num_key_value_heads": None}, 64),
        ("Qwen2ForCausalLM", {"num_key_value_heads": 4}, 4),
    ],
)
def test_absent_kv_heads_mean_what_they_mean_in_transformers(
    architecture: str, keys: dict[str, Any], expected: int
) -> None:
    model = parse(architectures=[architecture], num_attention_heads=64, hidden_size=4096, **keys)
    assert model.kv_heads == expected


def test_biases_follow_the_family_and_the_config() -> None:
    assert not parse().attention_bias
    llama = parse(attention_bias=True)
    assert (llama.attention_bias, llama.dense_bias) == (True, True)
    qwen2 = parse(architectures=["Qwen2ForCausalLM"], num_key_value_heads=2)
    assert (qwen2.attention_bias, qwen2.dense_bias) == (True, False)


def test_a_window_that_is_switched_off_does_not_count() -> None:
    assert parse(sliding_window=4096).sliding_window == 4096
    assert parse(sliding_window=4096, use_sliding_window=False).sliding_window is None
