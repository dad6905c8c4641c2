"""`engine.options` for trtllm: any option of the release's `trtllm-build`, checked beforehand.

`read_options` looks at each option alone, by the release's table. `refuse_contradictions` knows
what upstream finds out only later, or never says; `refuse_misfits` the part of that which needs
the checkpoint and the GPU. Sources: `tensorrt_llm/commands/build.py`, `builder.py` and
`plugin/plugin.py` of 0.16 and 1.x.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from trtforge.engines.trtllm.option_table import Option, load_table
from trtforge.engines.trtllm.versions import Release
from trtforge.errors import InputError
from trtforge.spec import EngineSpec, OptionValue, did_you_mean

Given = Mapping[str, bool | int | str | tuple[str, ...]]
"""Options as they will be passed: by upstream's name, with values of the table's type."""


class OptionUnknownError(InputError):
    """The release's `trtllm-build` has no such option."""


class OptionValueError(InputError):
    """The option has another type, or does not take this value."""


class OptionOwnedError(InputError):
    """trtforge sets this option itself, from another field of the spec."""


class OptionConflictError(InputError):
    """Two options, or an option and the model or GPU, that upstream does not take together."""


_KV_CACHE_TYPES = ("continuous", "paged", "disabled")
_WEIGHT_TYPES = ("float16", "bfloat16", "float32", "int32")
_LIMIT = "Set {} instead"
_TIMING_CACHE = "Set engine.timing_cache instead: off, read or read-write"
_PARALLEL = "Set checkpoint.{} instead: the checkpoint says how the model is split"
_OWNED: Mapping[str, str] = MappingProxyType(
    {
        "checkpoint_dir": "Set model.source instead: the checkpoint is made of it",
        "model_config": "Set model.source and checkpoint instead: they decide it",
        "build_config": "Set the limits and engine.options instead: it would replace all of them",
        "output_dir": "Leave it out: the engine goes to the store",
        **{
            name: _LIMIT.format(f"engine.{name}")
            for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
        },
        "max_decoder_seq_len": _LIMIT.format("engine.max_seq_len"),
        "max_output_len": _LIMIT.format("engine.max_seq_len"),
        "input_timing_cache": _TIMING_CACHE,
        "output_timing_cache": _TIMING_CACHE,
        "auto_parallel": _PARALLEL.format("tp"),
        "tp_size": _PARALLEL.format("tp"),
        "pp_size": _PARALLEL.format("pp"),
        "dtype": "Set checkpoint.dtype instead: the engine has the type of the checkpoint",
        "dry_run": "Leave it out: it builds no engine",
    }
)
_PATHS = ("model_cls_file", "lora_dir", "visualize_network")
_MINIMUM: Mapping[str, int] = MappingProxyType(
    {
        "max_beam_width": 1,
        "opt_num_tokens": 1,
        "workers": 1,
        "max_lora_rank": 1,
        "tokens_per_block": 1,
        "gpus_per_node": 1,
    }
)
_INT32_MAX = (1 << 31) - 1
_NOT_ON_SM100 = (
    "gemm_swiglu_plugin",
    "fp8_rowwise_gemm_plugin",
    "low_latency_gemm_plugin",
    "low_latency_gemm_swiglu_plugin",
    "bert_context_fmha_fp32_acc",
)


def read_options(release: Release, options: Mapping[str, OptionValue]) -> Given:
    """The options in upstream's names and types; a flag that is off is False.

    A switch (`enable`, `disable`) may be given as true or false, and an option that takes several
    values as one text with commas.

    Raises:
        OptionUnknownError, OptionOwnedError, OptionValueError, OptionConflictError: naming the
            option.
    """
    table = load_table(release.table)
    names = {name: option for option in table.values() for name in (option.name, *option.aliases)}
    given: dict[str, bool | int | str | tuple[str, ...]] = {}
    for name, value in options.items():
        if name in _OWNED:
            raise OptionOwnedError(
                "trtforge sets this option of trtllm-build itself",
                field=_field(name),
                value=value,
                remedy=_OWNED[name],
            )
        option = names.get(name)
        if option is None:
            raise OptionUnknownError(
                f"trtllm-build of TensorRT-LLM {release.version} has no such option",
                field=_field(name),
                value=value,
                remedy=did_you_mean(name, [known for known in names if known not in _OWNED]),
            )
        if option.name in given:
            raise _conflict(name, value, f"it is given twice, also as {option.name}", "Give one")
        given[option.name] = _read(option, name, value)
    return given


def check_options(release: Release, engine: EngineSpec) -> Given:
    """All that can be known of the options before there is a checkpoint or a GPU.

    Raises:
        OptionUnknownError, OptionOwnedError, OptionValueError, OptionConflictError: naming the
            option.
    """
    given = read_options(release, engine.options)
    refuse_contradictions(release, given, engine.max_batch_size)
    return given


def refuse_contradictions(release: Release, given: Given, max_batch_size: int) -> None:
    """Refuse what upstream raises only once it builds, or passes over without a word.

    Raises:
        OptionConflictError: naming one of the options.
    """
    if given.get("multiple_profiles") == "enable" and "opt_num_tokens" in given:
        raise _conflict(
            "opt_num_tokens",
            given["opt_num_tokens"],
            "trtllm-build does not take it together with multiple_profiles",
            "Leave one of them out",
        )
    for name in ("gather_context_logits", "gather_all_token_logits"):
        if given.get(name) and given.get("max_draft_len"):
            raise _conflict(
                name,
                True,
                f"context logits cannot be kept with max_draft_len {given['max_draft_len']}",
                "Use gather_generation_logits, or leave max_draft_len out",
            )
    if given.get("streamingllm") == "enable" and release.table != "0.16":
        raise _conflict(
            "streamingllm",
            "enable",
            f"TensorRT-LLM {release.version} has no StreamingLLM any more",
            "Leave it out, or use engine.version 0.16.0",
        )
    if given.get("weight_streaming") and given.get("gemm_plugin", "disable") != "disable":
        raise _conflict(
            "gemm_plugin",
            given["gemm_plugin"],
            "weight_streaming streams only weights that no plugin holds",
            "Set gemm_plugin to disable, or leave weight_streaming out",
        )
    if given.get("strip_plan"):
        raise _conflict(
            "strip_plan",
            True,
            "an engine without weights cannot be run, so it would pass no gate",
            "Leave it out",
        )
    _agree_on_kv_cache(given)
    if ("model_cls_file" in given) != ("model_cls_name" in given):
        name = "model_cls_file" if "model_cls_file" in given else "model_cls_name"
        raise _conflict(
            name,
            given[name],
            "model_cls_file and model_cls_name belong together",
            "Give both, or none",
        )
    if "lora_dir" in given and given.get("lora_plugin", "disable") == "disable":
        raise _conflict(
            "lora_dir",
            ",".join(_several(given["lora_dir"])),
            "without lora_plugin the adapters would be left out without a word",
            "Set lora_plugin to auto",
        )
    if given.get("speculative_decoding_mode") == "eagle":
        draft_len = given.get("max_draft_len", 0)
        if isinstance(draft_len, int) and draft_len > 256:
            raise _conflict("max_draft_len", draft_len, "EAGLE takes 256 at most", "Use 256")
        if max_batch_size > 512:
            raise _conflict(
                "speculative_decoding_mode",
                "eagle",
                f"EAGLE takes batches of 512 at most, engine.max_batch_size is {max_batch_size}",
                "Set engine.max_batch_size to 512",
            )


def refuse_misfits(
    release: Release,
    given: Given,
    checkpoint: Mapping[str, Any],
    compute_capability: str | None = None,
) -> None:
    """Refuse what does not go with the checkpoint's config.json or with the GPU.

    Raises:
        OptionConflictError: naming the option.
    """
    dtype = checkpoint.get("dtype")
    for name in ("gpt_attention_plugin", "gemm_plugin"):
        if given.get(name) in _WEIGHT_TYPES and given[name] != dtype:
            raise _conflict(
                name,
                given[name],
                f"the checkpoint's type is {dtype}, and a plugin of another type fails later",
                "Use auto",
            )
    architecture = checkpoint.get("architecture")
    if given.get("streamingllm") == "enable" and architecture != "LlamaForCausalLM":
        raise _conflict(
            "streamingllm", "enable", f"{architecture} does not support it", "Leave it out"
        )
    if given.get("pp_reduce_scatter") == "enable" and architecture != "MixtralForCausalLM":
        raise _conflict(
            "pp_reduce_scatter", "enable", f"{architecture} does not support it", "Leave it out"
        )
    if release.table == "0.16" or not (compute_capability or "").startswith("10."):
        return
    for name in _NOT_ON_SM100:
        if given.get(name, "disable") != "disable":
            raise _conflict(
                name,
                given[name],
                f"it does not work on GPUs of compute capability {compute_capability}",
                "Leave it out",
            )


def _agree_on_kv_cache(given: Given) -> None:
    kind, paged = given.get("kv_cache_type"), given.get("paged_kv_cache")
    if kind is not None and paged is not None and (kind == "paged") != (paged == "enable"):
        raise _conflict(
            "paged_kv_cache", paged, f"kv_cache_type {kind} says otherwise", "Give kv_cache_type"
        )


def _read(option: Option, name: str, value: OptionValue) -> bool | int | str | tuple[str, ...]:
    if option.type == "flag":
        if isinstance(value, bool):
            return value
        raise _wrong(name, value, "it takes no value", "Use true or false")
    if option.type == "int":
        minimum = _MINIMUM.get(option.name, 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(name, value, "not an integer", f"Use an integer from {minimum} on")
        if not minimum <= value <= _INT32_MAX:
            raise _wrong(name, value, "not a number it takes", f"Use an integer from {minimum} on")
        if option.name == "tokens_per_block" and value & (value - 1):
            raise _wrong(name, value, "blocks hold a power of two of tokens", "Use 32 or 64")
        return value
    if isinstance(value, bool) and (option.is_switch or option.name == "paged_kv_cache"):
        return "enable" if value else "disable"
    if not isinstance(value, str):
        raise _wrong(name, value, "not a text", _expected(option))
    if option.several:
        parts = tuple(part.strip() for part in value.split(","))
        return tuple(_read_text(option, name, value, part) for part in parts)
    return _read_text(option, name, value, value)


def _read_text(option: Option, name: str, value: str, text: str) -> str:
    if option.type == "KVCacheType":
        text = text.lower()
    choices = _choices(option)
    if choices:
        if text not in choices:
            raise _wrong(name, value, "not a value it takes", did_you_mean(text, list(choices)))
        return text
    # What begins with a dash would be taken for the next option.
    if not text or text.startswith("-") or re.search(r"[\x00-\x1f\x7f]", text):
        raise _wrong(name, value, "not a text that can be an argument", _expected(option))
    if option.name in _PATHS and not PurePosixPath(text).is_absolute():
        raise _wrong(name, value, "not an absolute path", "Begin it with /")
    return text


def _choices(option: Option) -> Sequence[str]:
    if option.type == "KVCacheType":
        return _KV_CACHE_TYPES
    if option.name == "paged_kv_cache":
        return ("enable", "disable")
    return option.choices


def _expected(option: Option) -> str:
    choices = _choices(option)
    if choices:
        return f"Use one of {', '.join(choices)}"
    return "Use a text, several with commas between them" if option.several else "Use a text"


def _several(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (str(value),)


def _field(name: str) -> str:
    return f"engine.options.{name}"


def _wrong(name: str, value: object, problem: str, remedy: str) -> OptionValueError:
    return OptionValueError(problem, field=_field(name), value=value, remedy=remedy)


def _conflict(name: str, value: object, problem: str, remedy: str) -> OptionConflictError:
    return OptionConflictError(problem, field=_field(name), value=value, remedy=remedy)
