"""The arguments of `trtllm-build`, exactly: what is asked for, and what trtforge always says.

Paths are relative to the directory the build runs in (`CHECKPOINT`, `ENGINE`, `CACHE`), so that
neither the command that is recorded nor the engine's config.json has a path of one machine in it.
"""

from trtforge.engines.trtllm.option_table import load_table
from trtforge.engines.trtllm.options import Given
from trtforge.engines.trtllm.versions import Release
from trtforge.spec import EngineSpec

CHECKPOINT = "checkpoint"
ENGINE = "engine"
CACHE = "model.cache"

# Upstream's own advice for bf16 and fp16, and what the first recipes wrote as the type itself:
# `auto` is the checkpoint's type, so that it can never be another one.
_PLUGINS = {"gpt_attention_plugin": "auto", "gemm_plugin": "auto"}


def build_arguments(
    release: Release, engine: EngineSpec, given: Given, *, read_cache: bool
) -> list[str]:
    """What follows `trtllm-build`.

    Args:
        engine: Whose limits are always said: upstream's defaults (2048 sequences, the model's
            longest) ask for more memory than any GPU has.
        given: What `trtforge.engines.trtllm.options.check_options` made of its options.
        read_cache: Start from a timing cache: of an earlier build or, where there are several
            ranks, of those before.
    """
    # Streamed weights are those that no plugin holds.
    plugins = _PLUGINS | ({"gemm_plugin": "disable"} if given.get("weight_streaming") else {})
    values: dict[str, bool | int | str | tuple[str, ...]] = {
        "checkpoint_dir": CHECKPOINT,
        "output_dir": ENGINE,
        "max_batch_size": engine.max_batch_size,
        "max_input_len": engine.max_input_len,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": engine.max_num_tokens,
        **({"input_timing_cache": CACHE} if read_cache else {}),
        "output_timing_cache": CACHE,
        "workers": 1,
        # Its lines are read for the phases of the build.
        "log_level": "info",
        **plugins,
        # The gate compares logits; 0.16 gives those of generated tokens only if it is built so.
        **({"gather_generation_logits": True} if release.table == "0.16" else {}),
        **given,
    }
    arguments: list[str] = []
    for name in load_table(release.table):
        value = values.pop(name, None)
        if value is None or value is False:
            continue
        arguments.append(f"--{name}")
        if isinstance(value, tuple):
            arguments += value
        elif value is not True:
            arguments.append(str(value))
    assert not values, f"not in the option table: {sorted(values)}"
    return arguments
