"""`engine.options` of trtllm: everything that would fail later is refused now, by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.engines.registry import open_backend
from trtforge.engines.trtllm.option_table import load_table
from trtforge.engines.trtllm.options import (
    OptionConflictError,
    OptionOwnedError,
    OptionUnknownError,
    OptionValueError,
    check_options,
    read_options,
    refuse_misfits,
)
from trtforge.engines.trtllm.versions import SUPPORTED, release
from trtforge.errors import InputError
from trtforge.spec import EngineSpec


def engine(version: str = "1.2.1", /, *, sequences: int = 4, **options: Any) -> EngineSpec:
    return EngineSpec(backend="trtllm", version=version, max_batch_size=sequences, options=options)


def refused(kind: type[InputError], spec: EngineSpec, option: str) -> InputError:
    with pytest.raises(kind) as caught:
        # No toolchain is needed to say so.
        open_backend("trtllm").check(spec)
    assert caught.value.field == f"engine.options.{option}"
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value


class TestUnknown:
    @pytest.mark.parametrize(
        ("typed", "meant"),
        [
            ("gemm_plugn", "gemm_plugin"),
            ("use-paged-context-fmha", "use_paged_context_fmha"),
            ("max_beam", "max_beam_width"),
            ("kv_cache", "kv_cache_type"),
        ],
    )
    def test_a_near_miss_is_answered_with_the_option_meant(self, typed: str, meant: str) -> None:
        error = refused(OptionUnknownError, engine(**{typed: "auto"}), typed)
        assert meant in error.remedy

    @pytest.mark.parametrize(
        ("option", "value", "has", "lacks"),
        [
            ("norm_quant_fusion", True, "1.0.0", "0.16.0"),
            ("cluster_key", "L4", "0.16.0", "1.2.1"),
            ("gpus_per_node", 8, "1.1.0", "1.2.1"),
        ],
    )
    def test_an_option_of_another_release_is_unknown(
        self, option: str, value: object, has: str, lacks: str
    ) -> None:
        open_backend("trtllm").check(engine(has, **{option: value}))
        assert (
            lacks in refused(OptionUnknownError, engine(lacks, **{option: value}), option).problem
        )


class TestOwned:
    @pytest.mark.parametrize(
        ("option", "field"),
        [
            ("max_batch_size", "engine.max_batch_size"),
            ("max_input_len", "engine.max_input_len"),
            ("max_seq_len", "engine.max_seq_len"),
            ("max_decoder_seq_len", "engine.max_seq_len"),
            ("max_num_tokens", "engine.max_num_tokens"),
            ("input_timing_cache", "engine.timing_cache"),
            ("output_timing_cache", "engine.timing_cache"),
            ("checkpoint_dir", "model.source"),
            ("output_dir", "store"),
            ("build_config", "engine.options"),
            ("auto_parallel", "checkpoint.tp"),
            ("tp_size", "checkpoint.tp"),
            ("pp_size", "checkpoint.pp"),
            ("dtype", "checkpoint.dtype"),
        ],
    )
    def test_what_trtforge_sets_is_refused_with_the_field_to_use(
        self, option: str, field: str
    ) -> None:
        assert field in refused(OptionOwnedError, engine(**{option: 8}), option).remedy


class TestValues:
    @pytest.mark.parametrize(
        ("option", "value", "remedy"),
        [
            ("gemm_plugin", "bf16", "Did you mean 'bfloat16'?"),
            ("gemm_plugin", "int4", "Did you mean 'int32'?"),
            ("gemm_plugin", True, "Use one of auto"),
            ("context_fmha", "on", "disable"),
            ("context_fmha", 1, "enable"),
            ("kv_cache_type", "page", "Did you mean 'paged'?"),
            ("max_beam_width", 0, "from 1 on"),
            ("max_beam_width", True, "integer"),
            ("max_beam_width", "4", "integer"),
            ("max_beam_width", 1.5, "integer"),
            ("opt_num_tokens", -1, "integer"),
            ("opt_num_tokens", 1 << 31, "integer"),
            ("tokens_per_block", 48, "32 or 64"),
            ("fast_build", "yes", "true or false"),
            ("fast_build", 1, "true or false"),
            ("lora_target_modules", "", "text"),
            ("lora_target_modules", "attn_q,,attn_k", "text"),
            ("lora_target_modules", "attn_q,--gemm_plugin", "text"),
            ("model_cls_name", "-x", "text"),
            ("visualize_network", "relative/path", "/"),
            ("log_level", "loud", "info"),
        ],
    )
    def test_a_wrong_type_or_choice_is_refused_with_a_right_one(
        self, option: str, value: object, remedy: str
    ) -> None:
        error = refused(OptionValueError, engine(**{option: value}), option)
        assert error.value == value
        assert remedy in error.remedy

    def test_choices_are_those_of_the_release(self) -> None:
        open_backend("trtllm").check(engine("1.0.0", gemm_plugin="nvfp4"))
        refused(OptionValueError, engine("0.16.0", gemm_plugin="nvfp4"), "gemm_plugin")
        open_backend("trtllm").check(engine("0.16.0", visualize_network=True))
        refused(OptionValueError, engine("1.2.1", visualize_network=True), "visualize_network")
        refused(
            OptionValueError,
            engine("0.16.0", lora_target_modules="attn_q,attn_z"),
            "lora_target_modules",
        )

    def test_a_switch_may_be_true_and_several_values_one_text(self) -> None:
        given = read_options(
            release("1.2.1"),
            {
                "context_fmha": False,
                "reduce_fusion": True,
                "kv_cache_type": "PAGED",
                "lora_target_modules": "attn_q, attn_k",
                "fast_build": True,
                "max_multimodal_len": 16,
            },
        )
        assert given == {
            "context_fmha": "disable",
            "reduce_fusion": "enable",
            "kv_cache_type": "paged",
            "lora_target_modules": ("attn_q", "attn_k"),
            "fast_build": True,
            "max_prompt_embedding_table_size": 16,
        }

    def test_an_option_under_two_names_is_given_twice(self) -> None:
        spec = engine(max_multimodal_len=1, max_prompt_embedding_table_size=2)
        refused(OptionConflictError, spec, "max_prompt_embedding_table_size")


class TestWhatUpstreamFindsOutLater:
    @pytest.mark.parametrize(
        ("version", "options", "option"),
        [
            ("1.2.1", {"multiple_profiles": True, "opt_num_tokens": 8}, "opt_num_tokens"),
            ("0.16.0", {"multiple_profiles": True, "opt_num_tokens": 8}, "opt_num_tokens"),
            ("1.2.1", {"gather_context_logits": True, "max_draft_len": 4}, "gather_context_logits"),
            (
                "1.2.1",
                {"gather_all_token_logits": True, "max_draft_len": 4},
                "gather_all_token_logits",
            ),
            ("1.2.1", {"streamingllm": True}, "streamingllm"),
            ("1.0.0", {"streamingllm": "enable"}, "streamingllm"),
            ("1.2.1", {"weight_streaming": True, "gemm_plugin": "auto"}, "gemm_plugin"),
            ("1.2.1", {"strip_plan": True}, "strip_plan"),
            ("1.2.1", {"kv_cache_type": "paged", "paged_kv_cache": False}, "paged_kv_cache"),
            ("1.2.1", {"kv_cache_type": "disabled", "paged_kv_cache": True}, "paged_kv_cache"),
            ("1.2.1", {"model_cls_file": "/a.py"}, "model_cls_file"),
            ("1.2.1", {"lora_dir": "/a,/b"}, "lora_dir"),
            (
                "1.2.1",
                {"speculative_decoding_mode": "eagle", "max_draft_len": 300},
                "max_draft_len",
            ),
        ],
    )
    def test_it_is_refused_at_plan_time(
        self, version: str, options: dict[str, Any], option: str
    ) -> None:
        refused(OptionConflictError, engine(version, **options), option)

    def test_eagle_takes_no_more_than_512_sequences(self) -> None:
        spec = engine(sequences=513, speculative_decoding_mode="eagle")
        error = refused(OptionConflictError, spec, "speculative_decoding_mode")
        assert "engine.max_batch_size" in error.remedy

    @pytest.mark.parametrize(
        ("version", "options"),
        [
            ("0.16.0", {"streamingllm": True}),
            ("1.2.1", {"weight_streaming": True}),
            ("1.2.1", {"weight_streaming": True, "gemm_plugin": "disable"}),
            ("1.2.1", {"multiple_profiles": False, "opt_num_tokens": 8}),
            ("1.2.1", {"gather_context_logits": False, "max_draft_len": 4}),
            ("1.2.1", {"strip_plan": False, "streamingllm": False}),
            ("1.2.1", {"kv_cache_type": "paged", "paged_kv_cache": True}),
            ("1.2.1", {"lora_dir": "/a", "lora_plugin": "auto"}),
        ],
    )
    def test_what_works_is_let_through(self, version: str, options: dict[str, Any]) -> None:
        open_backend("trtllm").check(engine(version, **options))


class TestMisfits:
    """What only the checkpoint and the GPU decide."""

    LLAMA: dict[str, Any] = {"architecture": "LlamaForCausalLM", "dtype": "bfloat16"}  # noqa: RUF012

    def misfit(self, version: str, capability: str = "9.0", **options: Any) -> InputError | None:
        spec = engine(version, **options)
        given = check_options(release(version), spec)
        try:
            refuse_misfits(release(version), given, self.LLAMA, capability)
        except OptionConflictError as error:
            return error
        return None

    @pytest.mark.parametrize("option", ["gpt_attention_plugin", "gemm_plugin"])
    def test_a_plugin_of_another_type_than_the_checkpoint(self, option: str) -> None:
        error = self.misfit("1.2.1", **{option: "float16"})
        assert error is not None
        assert error.field == f"engine.options.{option}"
        assert error.remedy == "Use auto"
        assert self.misfit("1.2.1", **{option: "bfloat16"}) is None
        assert self.misfit("1.2.1", **{option: "disable"}) is None

    def test_an_architecture_that_does_not_support_it(self) -> None:
        assert self.misfit("1.2.1", pp_reduce_scatter=True) is not None
        assert self.misfit("0.16.0", streamingllm=True) is None

    def test_a_gpu_that_does_not_support_it(self) -> None:
        for option in ("gemm_swiglu_plugin", "low_latency_gemm_plugin"):
            assert self.misfit("1.2.1", "10.0", **{option: "fp8"}) is not None
            assert self.misfit("1.2.1", "9.0", **{option: "fp8"}) is None
            assert self.misfit("1.2.1", "12.0", **{option: "fp8"}) is None


@given(
    st.sampled_from(SUPPORTED),
    st.dictionaries(
        st.text(max_size=12) | st.sampled_from(sorted(load_table("1.2"))),
        st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        max_size=4,
    ),
)
def test_whatever_is_typed_is_taken_or_refused_by_its_name(
    version: str, options: dict[str, Any]
) -> None:
    table = load_table(release(version).table)
    try:
        given = check_options(release(version), engine(version, **options))
    except InputError as error:
        field = error.field
    else:
        field = ""
        assert len(given) == len(options)
    assert field == "" or field.removeprefix("engine.options.") in {*options, *table}
