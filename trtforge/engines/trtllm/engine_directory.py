"""What `trtllm-build` left: is it whole, and what is in effect?

`config.json` is no mark of completion, upstream writes it before the first engine; neither is exit
code 0. Source: `Engine.save` and `EngineConfig` of `tensorrt_llm/builder.py`, 0.16 and 1.x.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtforge.errors import BuildError

LIMITS = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")


class EngineIncompleteError(BuildError):
    """`trtllm-build` ended well, but the engine directory is not complete."""


def read_world_size(config: Mapping[str, Any]) -> int:
    """How many ranks a checkpoint's config.json (an engine's `pretrained_config`) speaks of.

    Raises:
        LookupError, TypeError, ValueError: It does not say.
    """
    mapping = config["mapping"]
    split = mapping.get("tp_size", 1) * mapping.get("pp_size", 1) * mapping.get("cp_size", 1)
    world_size = mapping.get("world_size", split)
    if not isinstance(world_size, int) or world_size < 1 or world_size != split:
        raise ValueError(f"world_size {world_size!r} is not tp_size × pp_size × cp_size, {split!r}")
    return world_size


def require_complete(
    engine_dir: Path, world_size: int, *, managed_weights: bool, cache: Path, log_path: Path
) -> dict[str, Any]:
    """The engine's config.json, when everything that belongs to the engine is there.

    Args:
        world_size: Of the checkpoint.
        managed_weights: The weights lie in files of their own (`fast_build`).
        cache: The timing cache that was to be written.

    Raises:
        EngineIncompleteError: naming what is missing.
    """
    try:
        config = json.loads((engine_dir / "config.json").read_text(encoding="utf-8"))
        found = read_world_size(config["pretrained_config"])
        limits = [config["build_config"][name] for name in LIMITS]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise _incomplete(f"its config.json cannot be read ({why})", log_path) from error
    if found != world_size:
        raise _incomplete(
            f"its config.json speaks of {found} ranks, the checkpoint has {world_size}", log_path
        )
    if not all(isinstance(limit, int) and limit > 0 for limit in limits):
        raise _incomplete("its config.json does not say the limits in effect", log_path)
    names = [f"rank{rank}.engine" for rank in range(world_size)]
    if managed_weights:
        names += [f"rank{rank}_managed_weights.safetensors" for rank in range(world_size)]
    bad = [name for name in names if not _has_content(engine_dir / name)]
    if bad:
        raise _incomplete(f"{', '.join(bad)} missing or empty", log_path)
    if not _has_content(cache):
        raise _incomplete(f"{cache.name} missing or empty", log_path)
    return dict(config)


def effective_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is in effect, of an engine's config.json: its build_config, the limits first.

    `trtllm_version` and `world_size` are added, and where the timing cache lay is left out.
    """
    build: dict[str, Any] = dict(config["build_config"])
    for name in ("input_timing_cache", "output_timing_cache"):
        build.pop(name, None)
    return {
        **{name: build.pop(name) for name in LIMITS},
        **build,
        "trtllm_version": config.get("version"),
        "world_size": read_world_size(config["pretrained_config"]),
        "dtype": config["pretrained_config"].get("dtype"),
    }


def clipped(asked: Mapping[str, Any], effective: Mapping[str, Any]) -> list[str]:
    """One line for each limit that is not what was asked for."""
    return [
        f"{name}: asked for {value}, the engine has {effective[name]}"
        for name, value in asked.items()
        if effective[name] != value
    ]


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _incomplete(what: str, log_path: Path) -> EngineIncompleteError:
    return EngineIncompleteError(
        f"trtllm-build ended with exit code 0, but the engine is not complete: {what}",
        remedy=f"Free disk space is a frequent cause; the log is {log_path}",
    )
