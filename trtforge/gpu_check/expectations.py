"""What trtforge calls in each release, and the option tables held against the real parser."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trtforge.engines.trtllm.versions import Release

_REQUEST = ("input_token_ids", "max_tokens", "end_id", "pad_id", "stop_words", "sampling_config")
_BINDINGS: Mapping[str, Sequence[str]] = {
    "tensorrt_llm.bindings.executor:Request.__init__": (*_REQUEST, "streaming", "output_config"),
    "tensorrt_llm.bindings.executor:SamplingConfig.__init__": (
        "beam_width",
        "top_k",
        "top_p",
        "seed",
        "temperature",
    ),
    "tensorrt_llm.bindings.executor:OutputConfig.__init__": (
        "return_generation_logits",
        "exclude_input_from_output",
    ),
    "tensorrt_llm.bindings.executor:Executor.enqueue_requests": (),
    "tensorrt_llm.bindings.executor:Executor.await_responses": (),
    "tensorrt_llm.bindings.executor:Executor.shutdown": (),
}
_RUNNER = (
    "engine_dir",
    "rank",
    "max_batch_size",
    "max_input_len",
    "max_beam_width",
    "kv_cache_free_gpu_memory_fraction",
    "kv_cache_enable_block_reuse",
)
_LLM_API: Mapping[str, Sequence[str]] = {
    "tensorrt_llm._tensorrt_engine:LLM.__init__": ("model", "skip_tokenizer_init"),
    "tensorrt_llm._tensorrt_engine:LLM.generate_async": ("inputs", "sampling_params", "streaming"),
    "tensorrt_llm._tensorrt_engine:LLM.shutdown": (),
    "tensorrt_llm.llmapi.llm_args:TrtLlmArgs": (
        "gather_generation_logits",
        "kv_cache_config",
        "max_batch_size",
        "max_num_tokens",
        "max_seq_len",
        "max_beam_width",
    ),
    "tensorrt_llm.llmapi:KvCacheConfig": ("free_gpu_memory_fraction", "enable_block_reuse"),
    "tensorrt_llm:SamplingParams": (
        "max_tokens",
        "end_id",
        "pad_id",
        "ignore_eos",
        "detokenize",
        "stop_token_ids",
        "include_stop_str_in_output",
        "return_generation_logits",
        "temperature",
        "top_k",
        "top_p",
        "seed",
    ),
}


def expected_names(release: Release) -> dict[str, list[str]]:
    """`module:Name.name` → the parameters that trtforge passes."""
    has_llm = release.llm_api.endswith("LLM")
    runner = (*_RUNNER, *(("gather_generation_logits",) if has_llm else ()))
    expected = {
        "tensorrt_llm:mpi_rank": (),
        "tensorrt_llm.runtime:ModelRunnerCpp.from_dir": runner,
        **_BINDINGS,
        **(_LLM_API if has_llm else {}),
    }
    return {name: list(parameters) for name, parameters in expected.items()}


def compare_tables(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """How our option table differs from the release's parser; one line each, empty when it agrees.

    Rows as in the tables of `trtforge.engines.trtllm.option_table`.
    """
    mine = {row["flags"][0]: row for row in ours}
    real = {row["flags"][0]: row for row in theirs}
    lines = [f"{flag}: not in our table" for flag in real if flag not in mine]
    lines += [f"{flag}: not in the release" for flag in mine if flag not in real]
    for flag in mine.keys() & real.keys():
        for what in ("flags", "default", "choices", "type", "nargs", "kind"):
            ours_say, theirs_say = _told(mine[flag], what), _told(real[flag], what)
            if ours_say != theirs_say:
                lines.append(f"{flag}: {what} is {theirs_say!r}, our table says {ours_say!r}")
    return sorted(lines)


def flags_of_help(text: str) -> set[str]:
    """The long options that a `--help` names: those that begin an entry, not those in prose."""
    flags: set[str] = set()
    for line in text.splitlines():
        entry = re.match(r"\s{1,4}(-{1,2}\w.*)", line)
        if entry:
            # Two spaces end the options of an entry and begin its explanation.
            flags.update(re.findall(r"--[A-Za-z0-9_][\w-]*", re.split(r"\s{2,}", entry[1])[0]))
    return flags - {"--help"}


def _told(row: Mapping[str, Any], what: str) -> Any:
    value = row.get(what)
    if what == "choices" and value is not None:
        return sorted(str(choice) for choice in value)
    if what == "type":
        # argparse takes text as it is when no type is given; KVCacheType is a class upstream.
        return "" if row.get("nargs") == 0 else str(value or "str").replace("_", "").lower()
    if what == "flags":
        return sorted(value or ())
    return value
