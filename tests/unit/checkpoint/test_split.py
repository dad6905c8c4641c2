"""Which rank gets what, and which splits are refused, with the ones that would do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.checkpoint import parse_hf_config, preflight
from trtforge.checkpoint.families import Dim
from trtforge.checkpoint.split import (
    PipelineParallelError,
    TensorParallelError,
    check_split,
    layers_of,
    span,
)
from trtforge.checkpoint.target import (
    SplitError,
    Target,
    UnsupportedDtypeError,
    UnsupportedTargetError,
)

Models = Callable[[str], Any]
LLAMA = parse_hf_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
    }
)


@given(layers=st.integers(1, 200), pp=st.integers(1, 32))
def test_layers_are_dealt_out_as_numpys_array_split_does(layers: int, pp: int) -> None:
    expected = [list(part) for part in np.array_split(np.arange(layers), pp)]
    assert [list(layers_of(rank, layers, pp)) for rank in range(pp)] == expected


@given(vocab=st.integers(1, 1000), tp=st.integers(1, 16))
def test_the_vocabulary_is_filled_up_to_equal_parts(vocab: int, tp: int) -> None:
    model = dataclasses.replace(LLAMA, vocab_size=vocab)
    spans = [span(model, Dim.VOCAB, tp, rank) for rank in range(tp)]
    rows = [row for part in spans for row in range(part.start, part.stop)]
    assert rows == list(range(vocab))
    assert {part.length for part in spans} == {-(-vocab // tp)}


@given(kv_heads=st.integers(1, 8), factor=st.integers(1, 8))
def test_a_key_value_head_is_held_by_neighbouring_ranks(kv_heads: int, factor: int) -> None:
    model = dataclasses.replace(LLAMA, kv_heads=kv_heads, head_size=16)
    tp = kv_heads * factor
    heads = [span(model, Dim.KV, tp, rank).start // 16 for rank in range(tp)]
    assert heads == [rank // factor for rank in range(tp)]


@pytest.mark.parametrize(
    ("changes", "target", "error", "parts"),
    [
        ({}, Target(tp=3), TensorParallelError, ["checkpoint.tp = 3", "4 attention heads"]),
        ({}, Target(tp=3), TensorParallelError, ["Use a tp that this model allows: 1, 2, 4"]),
        (
            {"intermediate_size": 177},
            Target(tp=2),
            TensorParallelError,
            ["checkpoint.tp = 2", "177 neurons", "intermediate_size"],
        ),
        (
            {"heads": 12, "kv_heads": 4, "intermediate_size": 192},
            Target(tp=6),
            TensorParallelError,
            ["checkpoint.tp = 6", "4 key/value heads", "num_key_value_heads"],
        ),
        (
            {"hidden_size": 66},
            Target(tp=4, use_parallel_embedding=True, embedding_sharding_dim=1),
            TensorParallelError,
            ["66 dimensions of the embedding"],
        ),
        ({}, Target(pp=4), PipelineParallelError, ["checkpoint.pp = 4", "3 layers", "at most 3"]),
        (
            {},
            Target(pp=2, version="0.16"),
            PipelineParallelError,
            ["checkpoint.pp = 2", "silently drop 1", "one of 1, 3"],
        ),
    ],
)
def test_a_split_the_model_does_not_allow_is_refused_with_those_that_would_do(
    changes: dict[str, Any], target: Target, error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as refusal:
        check_split(dataclasses.replace(LLAMA, **changes), target)
    assert [part for part in parts if part not in str(refusal.value)] == []


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_layers_left_over_are_no_obstacle_for_newer_releases(version: str) -> None:
    check_split(LLAMA, Target(pp=2, version=version))


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        ({"version": "1.3"}, UnsupportedTargetError, "checkpoint.target = '1.3'"),
        ({"dtype": "float8"}, UnsupportedDtypeError, "checkpoint.dtype = 'float8'"),
        ({"tp": 0}, SplitError, "checkpoint.tp = 0"),
        ({"pp": -1}, SplitError, "checkpoint.pp = -1"),
        ({"embedding_sharding_dim": 2}, SplitError, "checkpoint.embedding_sharding_dim = 2"),
    ],
)
def test_an_impossible_target_cannot_be_made(
    arguments: dict[str, Any], error: type[Exception], field: str
) -> None:
    with pytest.raises(error) as refusal:
        Target(**arguments)
    assert str(refusal.value).startswith(field)


def test_duplicated_heads_and_a_filled_up_vocabulary_are_noted(hf_model: Models) -> None:
    heads, vocabulary = preflight(hf_model("llama31").path, Target(tp=4)).notes
    assert "2 key/value heads is held by 2 of the 4" in heads
    assert "259 is filled up with 1 row of zeros" in vocabulary
