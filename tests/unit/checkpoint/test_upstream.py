"""Which of TensorRT-LLM's own scripts a model needs, how it is called, and in which dialect."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.checkpoint import read_hf_config
from trtforge.checkpoint.config_keys import ConfigValueError
from trtforge.checkpoint.dialect import normalised_config
from trtforge.checkpoint.hf_config import InvalidConfigError, parse_hf_config
from trtforge.checkpoint.rope import RopeError
from trtforge.checkpoint.safetensors_io import TruncatedFileError
from trtforge.checkpoint.target import RELEASES, Target
from trtforge.checkpoint.upstream import (
    MODEL_TYPES,
    DroppedLayersError,
    NoUpstreamConverterError,
    ScriptContradictionError,
    ScriptOptionError,
    UnknownModelTypeError,
    command_arguments,
    preflight_upstream,
    require_upstream_converter,
    script_for,
    write_normalised_config,
)
from trtforge.engines.registry import open_backend
from trtforge.files import FileRef
from trtforge.progress import OnProgress

MODELS = Path(__file__).parents[2] / "fixtures" / "hf-models"
MODEL, OUT = Path("models/m"), Path("out")


@pytest.mark.parametrize(
    ("model_type", "architecture", "release", "script"),
    [
        ("llama", "LlamaForCausalLM", "0.16", "examples/llama"),
        ("llama", "LlamaForCausalLM", "1.2", "examples/models/core/llama"),
        ("mistral", "MistralForCausalLM", "1.0", "examples/models/core/llama"),
        ("mixtral", "MixtralForCausalLM", "0.16", "examples/llama"),
        ("qwen2", "Qwen2ForCausalLM", "0.16", "examples/qwen"),
        ("qwen2", "Qwen2ForCausalLM", "1.1", "examples/models/core/qwen"),
        ("qwen3_moe", "Qwen3MoeForCausalLM", "1.2", "examples/models/core/qwen"),
        ("gemma2", "Gemma2ForCausalLM", "1.2", "examples/models/core/gemma"),
        ("phi3", "Phi3ForCausalLM", "0.16", "examples/phi"),
        ("falcon", "FalconForCausalLM", "1.2", "examples/models/contrib/falcon"),
        ("granite", "GraniteForCausalLM", "1.2", "examples/models/core/llama"),
        ("internlm2", "InternLM2ForCausalLM", "1.2", "examples/models/core/internlm2"),
        ("starcoder2", "Starcoder2ForCausalLM", "1.2", "examples/models/core/gpt"),
        ("cohere", "CohereForCausalLM", "0.16", "examples/commandr"),
        ("gpt_neox", "GPTNeoXForCausalLM", "1.2", "examples/models/contrib/gptneox"),
    ],
)
def test_a_model_type_has_its_script_in_every_release(
    model_type: str, architecture: str, release: str, script: str
) -> None:
    config = {"model_type": model_type, "architectures": [architecture]}
    assert script_for(config, release) == PurePosixPath(script, "convert_checkpoint.py")


@pytest.mark.parametrize("name", [n for n in MODEL_TYPES if n.startswith("qwen")])
@pytest.mark.parametrize("release", ["1.1", "1.2"])
def test_no_qwen_goes_through_the_script_of_llama(name: str, release: str) -> None:
    assert script_for({"model_type": name}, release).parent.name == "qwen"


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_a_qwen_called_llama_is_refused_rather_than_stripped_of_its_biases(
    architecture: str,
) -> None:
    config = {"model_type": "qwen2", "architectures": [architecture]}
    with pytest.raises(ScriptContradictionError, match=architecture) as refusal:
        script_for(config, "1.2")
    assert "'qwen2'" in str(refusal.value)


def test_mistral_and_llama_share_a_script_and_so_do_not_contradict_each_other() -> None:
    config = {"model_type": "llama", "architectures": ["MistralForCausalLM"]}
    assert script_for(config, "1.2").parent.name == "llama"


@pytest.mark.parametrize(
    ("config", "release", "error", "said"),
    [
        ({"model_type": "flacon"}, "1.2", UnknownModelTypeError, "Did you mean 'falcon'?"),
        ({"model_type": "t5"}, "1.2", UnknownModelTypeError, "model_type = 't5'"),
        ({"model_type": "qwen3"}, "0.16", UnknownModelTypeError, "Use target 1.0 or newer"),
        ({"model_type": "qwen3_moe"}, "1.0", UnknownModelTypeError, "Use target 1.1 or newer"),
        ({}, "1.2", ConfigValueError, "model_type = None"),
        ({"model_type": ["llama"]}, "1.2", ConfigValueError, "model_type"),
    ],
)
def test_a_type_without_a_script_is_refused_by_name(
    config: dict[str, Any], release: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as refusal:
        script_for(config, release)
    assert said in str(refusal.value)


def test_the_type_of_the_weights_is_always_given() -> None:
    for name in MODEL_TYPES:
        for release in RELEASES:
            for dtype in ("bfloat16", "float16"):
                target = Target(version=release, dtype=dtype)
                try:
                    arguments = command_arguments({"model_type": name}, target, MODEL, OUT)
                except UnknownModelTypeError:
                    continue
                assert f"--dtype={dtype}" in arguments


def test_a_split_is_spelt_as_the_scripts_do() -> None:
    target = Target(tp=2, pp=4, use_parallel_embedding=True, embedding_sharding_dim=1)
    assert command_arguments({"model_type": "llama"}, target, MODEL, OUT) == [
        "--model_dir=models/m",
        "--output_dir=out",
        "--dtype=bfloat16",
        "--tp_size=2",
        "--pp_size=4",
        "--use_parallel_embedding",
        "--embedding_sharding_dim=1",
    ]
    assert command_arguments({"model_type": "gemma"}, Target(tp=2), MODEL, OUT) == [
        "--ckpt-type=hf",
        "--model-dir=models/m",
        "--output-model-dir=out",
        "--dtype=bfloat16",
        "--world-size=2",
    ]


def test_a_variant_that_a_script_would_guess_from_the_path_is_given() -> None:
    arguments = command_arguments({"model_type": "starcoder2"}, Target(), MODEL, OUT)
    assert "--gpt_variant=starcoder2" in arguments


@pytest.mark.parametrize(
    ("model_type", "target", "field"),
    [
        ("phi3", Target(tp=2, use_parallel_embedding=True), "checkpoint.use_parallel_embedding"),
        ("gemma", Target(pp=2), "checkpoint.pp"),
    ],
)
def test_what_a_script_has_no_option_for_is_refused(
    model_type: str, target: Target, field: str
) -> None:
    with pytest.raises(ScriptOptionError) as refusal:
        command_arguments({"model_type": model_type}, target, MODEL, OUT)
    assert refusal.value.field == field


class TestDialect:
    def test_what_transformers_5_writes_becomes_what_version_4_wrote(self) -> None:
        scaling = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        }
        new = {
            "hidden_size": 64,
            "dtype": "bfloat16",
            "rope_parameters": {"rope_theta": 500000.0, **scaling},
        }
        assert normalised_config(new) == {
            "hidden_size": 64,
            "torch_dtype": "bfloat16",
            "rope_theta": 500000.0,
            "rope_scaling": scaling,
        }
        assert "rope_parameters" in new  # the caller's copy stays

    def test_the_default_embedding_is_not_scaled(self) -> None:
        new = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
        assert normalised_config(new) == {"rope_theta": 1e6, "rope_scaling": None}

    def test_a_partial_rotation_keeps_its_own_key(self) -> None:
        new = {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}
        assert normalised_config(new)["partial_rotary_factor"] == 0.5

    def test_a_text_config_within_is_treated_likewise(self) -> None:
        config = normalised_config({"text_config": {"dtype": "float16"}})
        assert config == {"text_config": {"torch_dtype": "float16"}}

    @pytest.mark.parametrize(
        ("config", "key"),
        [
            ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta"),
            (
                {
                    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                    "rope_parameters": {"rope_type": "default"},
                },
                "rope_scaling",
            ),
            ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters"),
            ({"rope_parameters": [1]}, "rope_parameters"),
        ],
    )
    def test_what_the_old_dialect_cannot_say_is_refused(
        self, config: dict[str, Any], key: str
    ) -> None:
        with pytest.raises(RopeError) as refusal:
            normalised_config(config)
        assert refusal.value.field == f"config.json: {key}"

    @pytest.mark.parametrize("model", sorted(path.name for path in MODELS.iterdir()))
    def test_a_model_means_the_same_before_and_after(self, model: str) -> None:
        raw = json.loads((MODELS / model / "config.json").read_text())
        assert parse_hf_config(normalised_config(raw)) == parse_hf_config(raw)
        assert not {"dtype", "rope_parameters"} & set(normalised_config(raw))

    @given(st.dictionaries(st.sampled_from(["rope_theta", "torch_dtype", "a"]), st.integers()))
    def test_the_old_dialect_stays_as_it_is(self, config: dict[str, Any]) -> None:
        assert normalised_config(config) == config
        assert normalised_config(normalised_config(config)) == config

    def test_others_that_share_the_file_keep_it_as_it_was(self, hf_model: Any) -> None:
        model = hf_model("llama_untied_transformers5").path
        kept = model.parent / "kept.json"
        kept.hardlink_to(model / "config.json")
        before = kept.read_bytes()
        write_normalised_config(model)
        assert kept.read_bytes() == before
        assert "rope_theta" in json.loads((model / "config.json").read_text())
        assert read_hf_config(model) == parse_hf_config(json.loads(before))


class TestPreflight:
    def test_a_model_of_any_listed_type_passes(self, hf_model: Any) -> None:
        model = hf_model("llama31")
        model.edit_config(model_type="falcon", architectures=["FalconForCausalLM"])
        preflight_upstream(model.path, Target(tp=2))

    def test_the_weights_are_looked_at(self, hf_model: Any) -> None:
        model = hf_model("llama31").path / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-1])
        with pytest.raises(TruncatedFileError):
            preflight_upstream(model.parent, Target())

    @pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer"])
    def test_layers_that_0_16_would_drop_are_refused(self, hf_model: Any, key: str) -> None:
        model = hf_model("llama31")
        model.edit_config("num_hidden_layers")
        model.edit_config(**{key: 3})
        with pytest.raises(DroppedLayersError, match=r"checkpoint\.pp = 2: 3 layers"):
            preflight_upstream(model.path, Target(version="0.16", pp=2))
        preflight_upstream(model.path, Target(version="1.0", pp=2))

    def test_a_config_that_is_no_json_is_refused(self, hf_model: Any) -> None:
        model = hf_model("llama31").path
        (model / "config.json").write_text("{")
        with pytest.raises(InvalidConfigError, match=r"config\.json"):
            preflight_upstream(model, Target())


def test_a_backend_without_the_scripts_is_refused_by_name() -> None:
    with pytest.raises(NoUpstreamConverterError) as refusal:
        require_upstream_converter("aoti", open_backend("aoti"))
    assert refusal.value.field == "checkpoint.tool"
    assert "engine.backend is aoti" in str(refusal.value)


def test_a_backend_with_the_scripts_is_taken() -> None:
    class Backend:
        def convert_upstream(
            self, model_dir: Path, out_dir: Path, target: Target, on_progress: OnProgress
        ) -> list[FileRef]:
            raise NotImplementedError

    backend = Backend()
    assert require_upstream_converter("trtllm", backend) is backend
