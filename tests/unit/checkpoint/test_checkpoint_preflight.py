"""`preflight`: every broken input is refused before writing, by name and with a remedy."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtforge.checkpoint import convert, hf_config, plan, preflight, rope, safetensors_io
from trtforge.checkpoint.config_keys import ConfigValueError
from trtforge.checkpoint.preflight import ArchitectureTooNewError, TiedEmbeddingError
from trtforge.checkpoint.target import Target
from trtforge.checkpoint.weights import (
    DuplicateTensorError,
    IndexMismatchError,
    InvalidIndexError,
    MissingShardError,
    MissingWeightsError,
)
from trtforge.errors import InputError

Models = Callable[[str], Any]
Break = Callable[[Any], None]
SHARD_1 = "model-00001-of-00002.safetensors"
SHARD_2 = "model-00002-of-00002.safetensors"


def config(*remove: str, **changes: Any) -> Break:
    return lambda model: model.edit_config(*remove, **changes)


def text(name: str, content: str) -> Break:
    return lambda model: (model.path / name).write_text(content)


def remove(name: str) -> Break:
    return lambda model: (model.path / name).unlink()


def tensors(change: Callable[[dict[str, Any]], object]) -> Break:
    def apply(model: Any) -> None:
        stored = model.tensors()
        change(stored)
        model.save(stored)

    return apply


def truncate(name: str, by: int) -> Break:
    def apply(model: Any) -> None:
        raw = (model.path / name).read_bytes()
        (model.path / name).write_bytes(raw[: len(raw) - by])

    return apply


def sharded(then: Break) -> Break:
    def apply(model: Any) -> None:
        model.shard(2)
        then(model)

    return apply


def index(**changes: str) -> Break:
    return lambda model: model.write_index(model.index() | changes)


def duplicate(model: Any) -> None:
    first = safetensors_io.read_header(model.path / SHARD_1)
    name = next(iter(first))
    raw = (model.path / SHARD_1).read_bytes()
    (model.path / "again.safetensors").write_bytes(raw)
    model.write_index(model.index() | {name: "again.safetensors"})


def reshape(name: str, shape: tuple[int, ...]) -> Break:
    return tensors(lambda stored: setattr(stored[name], "shape", shape))


def retype(name: str, dtype: str, shape: tuple[int, ...]) -> Break:
    def change(stored: dict[str, Any]) -> None:
        stored[name].dtype, stored[name].shape = dtype, shape

    return tensors(change)


def copy_of(source: str, name: str) -> Break:
    return tensors(lambda stored: stored.update({name: stored[source]}))


Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"

# model, how it is broken, the error, what the message says (all of it)
CASES = {
    "no config": (
        "llama31",
        remove("config.json"),
        hf_config.MissingConfigError,
        ["no config.json"],
    ),
    "config not JSON": (
        "llama31",
        text("config.json", '{"a": '),
        hf_config.InvalidConfigError,
        ["config.json", "not valid JSON"],
    ),
    "config not an object": (
        "llama31",
        text("config.json", "[]"),
        hf_config.InvalidConfigError,
        ["config.json", "list"],
    ),
    "architecture": (
        "llama31",
        config(architectures=["GPT2LMHeadModel"]),
        hf_config.UnsupportedArchitectureError,
        ["GPT2LMHeadModel", "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM"],
    ),
    "architecture misspelt": (
        "llama31",
        config(architectures=["LlamaForCasualLM"]),
        hf_config.UnsupportedArchitectureError,
        ["Did you mean LlamaForCausalLM?"],
    ),
    "no architecture": (
        "llama31",
        config("architectures"),
        ConfigValueError,
        ["config.json: architectures = None"],
    ),
    "quantised": (
        "llama31",
        config(quantization_config={"quant_method": "awq"}),
        hf_config.QuantizedModelError,
        ["quantization_config = 'awq'", "unquantised"],
    ),
    "activation": (
        "llama31",
        config(hidden_act="gelu"),
        hf_config.UnsupportedActivationError,
        ["hidden_act = 'gelu'", "'silu'"],
    ),
    "mlp bias": ("llama31", config(mlp_bias=True), hf_config.MlpBiasError, ["mlp_bias = True"]),
    "heads": (
        "llama31",
        config(num_key_value_heads=3),
        hf_config.HeadCountError,
        ["num_key_value_heads = 3", "4 attention heads"],
    ),
    "missing key": (
        "llama31",
        config("intermediate_size"),
        ConfigValueError,
        ["intermediate_size = None", "positive whole number"],
    ),
    "wrong type": (
        "llama31",
        config(num_hidden_layers="3"),
        ConfigValueError,
        ["num_hidden_layers = '3'"],
    ),
    "rope kind": (
        "llama31",
        config(rope_scaling={"rope_type": "longrope", "factor": 2.0}),
        rope.RopeError,
        ["rope_scaling.rope_type = 'longrope'", "llama3"],
    ),
    "rope factor": (
        "llama31",
        config(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        ConfigValueError,
        ["rope_scaling.low_freq_factor = None"],
    ),
    "no weights": (
        "llama31",
        remove("model.safetensors"),
        MissingWeightsError,
        ["model.safetensors nor model.safetensors.index.json"],
    ),
    "truncated": (
        "llama31",
        truncate("model.safetensors", 1000),
        safetensors_io.TruncatedFileError,
        ["model.safetensors", "346784 bytes expected, 345784 found"],
    ),
    "git-lfs pointer": (
        "llama31",
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        safetensors_io.LfsPointerError,
        ["model.safetensors", "git lfs pull"],
    ),
    "truncated shard": (
        "llama31",
        sharded(truncate(SHARD_2, 8)),
        safetensors_io.TruncatedFileError,
        [SHARD_2],
    ),
    "missing shard": (
        "llama31",
        sharded(remove(SHARD_2)),
        MissingShardError,
        [SHARD_2, "not there"],
    ),
    "index not JSON": (
        "llama31",
        sharded(text("model.safetensors.index.json", "{")),
        InvalidIndexError,
        ["index.json", "not valid JSON"],
    ),
    "index leaves the directory": (
        "llama31",
        sharded(index(**{NORM: "../norm.safetensors"})),
        InvalidIndexError,
        [NORM, "../norm.safetensors"],
    ),
    "index names a tensor no shard has": (
        "llama31",
        sharded(index(ghost=SHARD_1)),
        IndexMismatchError,
        ["'ghost'", SHARD_1],
    ),
    "tensor in two shards": (
        "llama31",
        sharded(duplicate),
        DuplicateTensorError,
        ["again.safetensors", SHARD_1],
    ),
    "missing tensor": (
        "llama31",
        tensors(lambda stored: stored.pop(Q)),
        plan.MissingTensorError,
        [Q, "transformer.layers.1.attention.qkv.weight"],
    ),
    "missing bias": (
        "qwen2_untied",
        tensors(lambda stored: stored.pop("model.layers.2.self_attn.k_proj.bias")),
        plan.MissingTensorError,
        ["model.layers.2.self_attn.k_proj.bias"],
    ),
    "missing output matrix": (
        "llama_tied",
        config(tie_word_embeddings=False),
        plan.MissingTensorError,
        ["'lm_head.weight'", "tie_word_embeddings"],
    ),
    "shape": (
        "llama31",
        reshape(GATE, (64, 176)),
        plan.TensorShapeError,
        [GATE, "[64, 176]", "[176, 64] is expected", "intermediate_size × hidden_size"],
    ),
    "integer weights": (
        "llama31",
        retype(GATE, "I16", (176, 64)),
        plan.TensorDtypeError,
        [GATE, "'I16'", "BF16, F16, F32"],
    ),
    "unknown tensor": (
        "llama31",
        copy_of(NORM, "model.layers.0.self_attn.q_norm.weight"),
        plan.UnknownTensorError,
        ["model.layers.0.self_attn.q_norm.weight", "no place"],
    ),
    "more layers than the config says": (
        "llama31",
        config(num_hidden_layers=2),
        plan.UnknownTensorError,
        ["model.layers.2.", "num_hidden_layers"],
    ),
    "biases in a model said to have none": (
        "qwen2_untied",
        config(architectures=["LlamaForCausalLM"]),
        plan.UnknownTensorError,
        ["_proj.bias"],
    ),
    "tied embeddings that differ": (
        "llama_untied",
        config(tie_word_embeddings=True),
        TiedEmbeddingError,
        ["lm_head.weight", "model.embed_tokens.weight"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_model_is_refused_in_one_line_and_nothing_is_written(
    hf_model: Models, tmp_path: Path, names_in: Callable[[Path], list[str]], case: str
) -> None:
    name, damage, error, parts = CASES[case]
    model = hf_model(name)
    damage(model)
    with pytest.raises(InputError) as refusal:
        convert(model.path, tmp_path / "out")
    assert type(refusal.value) is error
    message = str(refusal.value)
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message
    assert refusal.value.remedy
    assert str(pickle.loads(pickle.dumps(refusal.value))) == message
    assert names_in(tmp_path) == ["models"]


def test_a_plan_tells_what_will_be_written(hf_model: Models, tmp_path: Path) -> None:
    model = hf_model("llama31").path
    planned = preflight(model)
    qkv = next(t for t in planned.ranks[0].tensors if t.name.endswith("0.attention.qkv.weight"))
    assert (qkv.dtype, qkv.shape) == ("BF16", (128, 64))
    assert [(block.tensor.name, block.row_start, block.row_stop) for block in qkv.sources] == [
        ("model.layers.0.self_attn.q_proj.weight", 0, 64),
        ("model.layers.0.self_attn.k_proj.weight", 0, 32),
        ("model.layers.0.self_attn.v_proj.weight", 0, 32),
    ]
    assert planned.notes == ()
    assert planned.output_bytes == convert(model, tmp_path / "out")[1].size_bytes


def test_rotary_buffers_of_old_models_are_ignored(hf_model: Models) -> None:
    model = hf_model("llama31")
    copy_of(NORM, "model.layers.0.self_attn.rotary_emb.inv_freq")(model)
    assert preflight(model.path).ranks


def test_a_stored_copy_of_tied_embeddings_is_accepted(hf_model: Models) -> None:
    model = hf_model("llama_tied")
    expected = preflight(model.path).output_bytes
    copy_of("model.embed_tokens.weight", "lm_head.weight")(model)
    assert preflight(model.path).output_bytes == expected


def test_the_single_file_is_preferred_to_an_index_as_in_transformers(hf_model: Models) -> None:
    model = hf_model("llama31")
    model.write_index({"lm_head.weight": "gone.safetensors"})
    assert preflight(model.path).ranks


def test_rounding_and_a_sliding_window_are_noted(hf_model: Models) -> None:
    model = hf_model("mistral")
    model.edit_config(sliding_window=4096)
    stored = model.tensors()
    stored[NORM].dtype, stored[NORM].data = "F32", bytes(64 * 4)
    model.save(stored)
    rounding, window = preflight(model.path).notes
    assert "F32" in rounding
    assert "4096 tokens" in window


def test_config_is_serialisable_and_independent_of_the_plan(hf_model: Models) -> None:
    planned = preflight(hf_model("llama31").path)
    assert json.loads(json.dumps(planned.config)) == planned.config


def test_qwen3_is_refused_for_a_release_before_it_and_marked_as_unchecked(
    hf_model: Models,
) -> None:
    model = hf_model("qwen2_untied")
    model.edit_config(architectures=["Qwen3ForCausalLM"])
    stored = {name: t for name, t in model.tensors().items() if not name.endswith(".bias")}
    kind = type(stored[NORM])
    for layer in range(3):
        for part in "qk":
            name = f"model.layers.{layer}.self_attn.{part}_norm.weight"
            stored[name] = kind("BF16", (16,), bytes(32))
    model.save(stored)
    assert "was not compared with upstream's converter" in preflight(model.path).notes[-1]
    with pytest.raises(ArchitectureTooNewError, match=r"checkpoint.target = '0.16'.*1.0, 1.1, 1.2"):
        preflight(model.path, Target(version="0.16"))
