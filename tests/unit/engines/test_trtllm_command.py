"""Every command that trtforge can make, put to a parser made from the option table alone."""

from argparse import Namespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin.environment import table_parser

from trtforge.engines.trtllm.command import build_arguments
from trtforge.engines.trtllm.option_table import raw_table
from trtforge.engines.trtllm.options import check_options
from trtforge.engines.trtllm.versions import SUPPORTED, release
from trtforge.errors import InputError
from trtforge.spec import EngineSpec

PARSERS = {version: table_parser(version) for version in SUPPORTED}
SET_BY_TRTFORGE = {
    "checkpoint_dir",
    "output_dir",
    "max_batch_size",
    "max_input_len",
    "max_seq_len",
    "max_num_tokens",
    "output_timing_cache",
    "workers",
    "log_level",
    "gpt_attention_plugin",
    "gemm_plugin",
}
OWNED = {
    *SET_BY_TRTFORGE - {"workers", "log_level", "gpt_attention_plugin", "gemm_plugin"},
    "input_timing_cache",
    "model_config",
    "build_config",
    "auto_parallel",
    "dry_run",
}
# Those that exclude, or need, another one come in groups that agree.
DEPENDENT = {
    "multiple_profiles",
    "opt_num_tokens",
    "gather_context_logits",
    "gather_all_token_logits",
    "max_draft_len",
    "streamingllm",
    "weight_streaming",
    "gemm_plugin",
    "strip_plan",
    "kv_cache_type",
    "paged_kv_cache",
    "model_cls_file",
    "model_cls_name",
    "lora_dir",
    "lora_plugin",
    "speculative_decoding_mode",
}
GROUPS: tuple[dict[str, Any], ...] = (
    {},
    {"multiple_profiles": True, "gemm_plugin": "disable"},
    {"opt_num_tokens": 16, "multiple_profiles": "disable"},
    {"gather_context_logits": True, "gemm_plugin": "bfloat16"},
    {"gather_all_token_logits": True, "max_draft_len": 0},
    {"max_draft_len": 8, "speculative_decoding_mode": "eagle"},
    {"max_draft_len": 8, "speculative_decoding_mode": "draft_tokens_external"},
    {"weight_streaming": True},
    {"weight_streaming": True, "gemm_plugin": "disable"},
    {"kv_cache_type": "PAGED", "paged_kv_cache": True},
    {"kv_cache_type": "continuous", "strip_plan": False},
    {"paged_kv_cache": "disable"},
    {"model_cls_file": "/models/mine.py", "model_cls_name": "Mine"},
    {"lora_dir": "/lora/a,/lora/b", "lora_plugin": "auto", "lora_target_modules": "attn_q,attn_v"},
)


@st.composite
def valid_engines(draw: st.DrawFn) -> EngineSpec:
    version = draw(st.sampled_from(SUPPORTED))
    rows = {row["dest"]: row for row in raw_table(release(version).table)}
    names = sorted(set(rows) - OWNED - DEPENDENT)
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=6))
    options = {name: draw(values(rows[name])) for name in chosen}
    options |= draw(st.sampled_from(GROUPS))
    max_seq_len = draw(st.integers(3, 4096))
    max_input_len = draw(st.integers(2, max_seq_len))
    return EngineSpec(
        backend="trtllm",
        version=version,
        max_batch_size=draw(st.integers(1, 512)),
        max_input_len=max_input_len,
        max_seq_len=max_seq_len,
        max_num_tokens=draw(st.integers(max_input_len, 1 << 20)),
        options=options,
    )


def values(row: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that an option of the table takes, as one writes them in a spec."""
    if row["kind"] == "_StoreTrueAction":
        return st.booleans()
    if row["dest"] == "tokens_per_block":
        return st.sampled_from([8, 16, 32, 64, 128])
    if row["type"] == "int":
        return st.integers(1, 1 << 20)
    words = row["choices"] or ["/some/where", "/else"]
    if row["nargs"] == "+":
        return st.lists(st.sampled_from(words), min_size=1, max_size=3).map(",".join)
    if set(words) == {"enable", "disable"}:
        return st.sampled_from(["enable", "disable", True, False])
    return st.sampled_from(words)


def arguments(engine: EngineSpec, *, read_cache: bool = False) -> list[str]:
    used = release(engine.version)
    return build_arguments(used, engine, check_options(used, engine), read_cache=read_cache)


def parsed(engine: EngineSpec, *, read_cache: bool = False) -> Namespace:
    return PARSERS[engine.version].parse_args(arguments(engine, read_cache=read_cache))


def as_parsed(row: dict[str, Any], value: Any) -> Any:
    """What a parser makes of an option as the spec has it."""
    if row["kind"] == "_StoreTrueAction" or row["type"] == "int":
        return value
    if isinstance(value, bool):
        return "enable" if value else "disable"
    if row["nargs"] == "+":
        return value.split(",")
    return value.lower() if row["type"] == "KVCacheType" else value


@settings(max_examples=300, deadline=None)
@given(valid_engines(), st.booleans())
def test_every_command_parses_and_says_exactly_what_was_asked(
    engine: EngineSpec, read_cache: bool
) -> None:
    said = vars(parsed(engine, read_cache=read_cache))
    rows = {row["dest"]: row for row in raw_table(release(engine.version).table)}
    for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens"):
        assert said[name] == getattr(engine, name)
    assert (said["checkpoint_dir"], said["output_dir"]) == ("checkpoint", "engine")
    assert said["output_timing_cache"] == "model.cache"
    assert said["input_timing_cache"] == ("model.cache" if read_cache else None)
    for name, value in engine.options.items():
        assert said[name] == as_parsed(rows[name], value), name
    # And nothing else: upstream's defaults hold for what nobody asked for.
    untouched = set(rows) - set(engine.options) - SET_BY_TRTFORGE - {"input_timing_cache"}
    untouched -= {"gather_generation_logits"} if engine.version == "0.16.0" else set()
    for name in untouched:
        assert said.get(name, "==SUPPRESS==") == rows[name]["default"], name


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SUPPORTED),
    st.data(),
    st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=6),
)
def test_what_the_parser_would_not_take_is_refused_before(
    version: str, data: st.DataObject, value: Any
) -> None:
    rows = raw_table(release(version).table)
    row = data.draw(st.sampled_from([row for row in rows if row["dest"] not in OWNED]))
    try:
        spec = EngineSpec(backend="trtllm", version=version, options={row["dest"]: value})
        said = parsed(spec)
    except (InputError, ValueError):  # of trtforge, or of the spec's own (NaN)
        return
    assert vars(said)[row["dest"]] == as_parsed(row, value)


def test_what_the_first_recipes_and_the_last_release_want_is_the_default() -> None:
    for version in SUPPORTED:
        said = parsed(EngineSpec(backend="trtllm", version=version))
        assert (said.gpt_attention_plugin, said.gemm_plugin) == ("auto", "auto")
    recipe = {"gpt_attention_plugin": "bfloat16", "gemm_plugin": "bfloat16"}
    said = parsed(EngineSpec(backend="trtllm", options=recipe))
    assert (said.gpt_attention_plugin, said.gemm_plugin) == ("bfloat16", "bfloat16")


def test_streamed_weights_are_held_by_no_plugin() -> None:
    said = parsed(EngineSpec(backend="trtllm", options={"weight_streaming": True}))
    assert said.gemm_plugin == "disable"


def test_the_command_of_a_plain_spec_in_full() -> None:
    assert " ".join(arguments(EngineSpec(backend="trtllm"), read_cache=True)) == (
        "--checkpoint_dir checkpoint --output_dir engine --max_batch_size 4 --max_input_len 384 "
        "--max_seq_len 512 --max_num_tokens 1024 --input_timing_cache model.cache "
        "--output_timing_cache model.cache --workers 1 --log_level info "
        "--gpt_attention_plugin auto --gemm_plugin auto"
    )


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_option_of_the_table_can_be_given_or_is_set_from_another_field(version: str) -> None:
    rows = {row["dest"]: row for row in raw_table(release(version).table)}
    # Gone from 1.0 on, and of no use: both refused with the reason.
    refused = {"strip_plan"} | ({"streamingllm"} if version != "0.16.0" else set())
    for name, row in rows.items():
        if name in OWNED | refused:
            continue
        example = {"int": 4, "KVCacheType": "paged"}.get(row["type"]) or "/some/where"
        if row["kind"] == "_StoreTrueAction":
            example = True
        elif row["choices"]:
            example = row["choices"][0]
        group = next((group for group in GROUPS if group.get(name)), {})
        if name == "paged_kv_cache":
            example = "enable"
        spec = EngineSpec(backend="trtllm", version=version, options={name: example, **group})
        value = spec.options[name]
        assert vars(parsed(spec))[name] == as_parsed(row, value), name
