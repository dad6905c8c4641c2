"""Putting the ranks back together gives the source, for any model and any split it allows.

What belongs where is computed here by slicing whole arrays, after the table in NVIDIA's
documentation of the checkpoint format, and with nothing of the converter's own arithmetic.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from trtforge.checkpoint import convert
from trtforge.checkpoint.target import Target
from trtforge.files import describe_directory

Arrays = dict[str, np.ndarray]
NUMPY = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    weights: Arrays
    target: Target


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A random small model that the target's split is allowed for."""
    tp = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    kv_heads = draw(st.sampled_from([n for n in range(1, 13) if n % tp == 0 or tp % n == 0]))
    heads = draw(st.sampled_from([n for n in range(1, 49) if n % tp == 0 and n % kv_heads == 0]))
    layers = draw(st.integers(1, 4))
    pp = draw(st.integers(1, layers))
    version = draw(st.sampled_from(["1.2", "1.1", "1.0"] + ["0.16"] * (layers % pp == 0)))
    families = ["Llama", "Mistral", "Qwen2"] + ["Qwen3"] * (version != "0.16")
    parallel = draw(st.booleans())
    dim = draw(st.sampled_from([0, 1]))
    hidden = draw(st.integers(1, 6)) * tp
    config = {
        "architectures": [draw(st.sampled_from([f"{name}ForCausalLM" for name in families]))],
        "vocab_size": draw(st.integers(1, 30)),
        "hidden_size": hidden,
        "intermediate_size": draw(st.integers(1, 5)) * tp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.integers(1, 4)),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
    }
    stored = NUMPY[draw(st.sampled_from(list(NUMPY)))]
    seed = draw(st.integers(0, 2**32 - 1))
    target = Target(
        version=version,
        dtype=draw(st.sampled_from(["bfloat16", "float16"])),
        tp=tp,
        pp=pp,
        use_parallel_embedding=parallel,
        embedding_sharding_dim=dim,
    )
    return Case(config, weights_of(config, stored, seed), target)


def weights_of(config: dict[str, Any], dtype: np.dtype, seed: int) -> Arrays:
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    qwen2, qwen3 = (config["architectures"] == [f"Qwen{n}ForCausalLM"] for n in (2, 3))
    bias = config.get("attention_bias") and not qwen3
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if qwen3:
            layer |= {f"self_attn.{n}_norm.weight": (head,) for n in "qk"}
        if qwen2 or bias:
            layer |= {f"self_attn.{n}_proj.bias": (d,) for n, d in (("q", q), ("k", kv), ("v", kv))}
        if bias and not qwen2:
            layer["self_attn.o_proj.bias"] = (hidden,)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def expected_rank(case: Case, rank: int) -> Arrays:
    """The tensors of one rank file, by slicing."""
    config, target, source = case.config, case.target, case.weights
    tp, pp_rank, tp_rank = target.tp, rank // target.tp, rank % target.tp
    head, heads = config["head_dim"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    my_heads = np.split(np.arange(heads), tp)[tp_rank]
    all_kv = np.repeat(np.arange(kv_heads), max(1, tp // kv_heads))
    my_kv = np.split(all_kv, tp)[tp_rank]

    def heads_of(array: np.ndarray, which: np.ndarray) -> np.ndarray:
        return array.reshape(-1, head, *array.shape[1:])[which].reshape(-1, *array.shape[1:])

    def padded_vocab(array: np.ndarray) -> np.ndarray:
        rows = -(-len(array) // tp)
        padded = np.concatenate([array, np.zeros((rows * tp - len(array), array.shape[1]))])
        return np.split(padded, tp)[tp_rank].astype(array.dtype)

    out: Arrays = {}
    embedding = source["model.embed_tokens.weight"]
    if pp_rank == 0:
        shard = embedding
        if target.use_parallel_embedding:
            by_columns = target.embedding_sharding_dim == 1
            shard = (
                np.split(embedding, tp, axis=1)[tp_rank] if by_columns else padded_vocab(embedding)
            )
        out["transformer.vocab_embedding.weight"] = shard
    layers = np.array_split(np.arange(config["num_hidden_layers"]), target.pp)[pp_rank]
    for local, layer in enumerate(layers):
        part = {
            name.removeprefix(f"model.layers.{layer}."): array
            for name, array in source.items()
            if name.startswith(f"model.layers.{layer}.")
        }

        def qkv(kind: str, part: Arrays = part) -> np.ndarray:
            q, k, v = (part[f"self_attn.{n}_proj.{kind}"] for n in "qkv")
            return np.concatenate([heads_of(q, my_heads), heads_of(k, my_kv), heads_of(v, my_kv)])

        tensors = {
            "input_layernorm.weight": part["input_layernorm.weight"],
            "post_layernorm.weight": part["post_attention_layernorm.weight"],
            "attention.qkv.weight": qkv("weight"),
            "attention.dense.weight": heads_of(part["self_attn.o_proj.weight"].T, my_heads).T,
            "mlp.fc.weight": np.split(part["mlp.gate_proj.weight"], tp)[tp_rank],
            "mlp.gate.weight": np.split(part["mlp.up_proj.weight"], tp)[tp_rank],
            "mlp.proj.weight": np.split(part["mlp.down_proj.weight"], tp, axis=1)[tp_rank],
        }
        if "self_attn.q_norm.weight" in part:
            tensors["attention.q_layernorm.weight"] = part["self_attn.q_norm.weight"]
            tensors["attention.k_layernorm.weight"] = part["self_attn.k_norm.weight"]
        if "self_attn.q_proj.bias" in part:
            tensors["attention.qkv.bias"] = qkv("bias")
        if "self_attn.o_proj.bias" in part:
            tensors["attention.dense.bias"] = part["self_attn.o_proj.bias"]
        out |= {f"transformer.layers.{local}.{name}": array for name, array in tensors.items()}
    if pp_rank == target.pp - 1:
        out["transformer.ln_f.weight"] = source["model.norm.weight"]
        out["lm_head.weight"] = padded_vocab(source.get("lm_head.weight", embedding))
    return {name: array.astype(NUMPY[target.dtype]) for name, array in out.items()}


@given(case=cases())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_every_source_byte_lands_where_the_formula_says(case: Case) -> None:
    with tempfile.TemporaryDirectory() as name:
        model, out = Path(name) / "model", Path(name) / "out"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(case.config))
        save_file(case.weights, model / "model.safetensors")
        files = convert(model, out, case.target)
        assert sorted(files) == describe_directory(out)
        assert len(files) == 1 + case.target.tp * case.target.pp
        for rank in range(case.target.tp * case.target.pp):
            written = load_file(out / f"rank{rank}.safetensors")
            expected = expected_rank(case, rank)
            assert written.keys() == expected.keys()
            for tensor, array in expected.items():
                assert written[tensor].dtype == array.dtype, tensor
                np.testing.assert_array_equal(
                    written[tensor].view(np.uint16), array.view(np.uint16), tensor
                )


@pytest.mark.parametrize("tp", [2, 3])
def test_rows_wider_than_a_buffer_are_split_all_the_same(tmp_path: Path, tp: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 3,
        "hidden_size": 2,
        "intermediate_size": 2_400_000,
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8,
    }
    case = Case(config, weights_of(config, NUMPY["float32"], seed=tp), Target(tp=tp))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    save_file(case.weights, tmp_path / "model" / "model.safetensors")
    convert(tmp_path / "model", tmp_path / "out", case.target)
    for rank in range(tp):
        written = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        for tensor, array in expected_rank(case, rank).items():
            assert np.array_equal(written[tensor].view(np.uint16), array.view(np.uint16)), tensor
