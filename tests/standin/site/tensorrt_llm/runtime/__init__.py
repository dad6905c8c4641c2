"""`ModelRunnerCpp.from_dir`, with the arguments that 0.16 has, and 1.x's besides."""

# ruff: noqa: ARG003

from pathlib import Path
from typing import Any

from tensorrt_llm.arithmetic import Arithmetic
from tensorrt_llm.bindings.executor import Executor
from tensorrt_llm.version import __version__


class ModelRunnerCpp:
    @classmethod
    def from_dir(
        cls,
        engine_dir: str,
        *,
        rank: int = 0,
        max_batch_size: "int | None" = None,
        max_input_len: "int | None" = None,
        max_output_len: "int | None" = None,
        max_beam_width: "int | None" = None,
        kv_cache_free_gpu_memory_fraction: "float | None" = None,
        kv_cache_enable_block_reuse: bool = False,
        **newer: Any,
    ) -> "ModelRunnerCpp":
        old = __version__.startswith("0.")
        allowed = set() if old else {"gather_generation_logits"}
        if set(newer) - allowed:
            raise TypeError(f"from_dir() got an unexpected keyword argument {sorted(newer)[0]!r}")
        model = Arithmetic(Path(engine_dir), rank)
        limit = model.build["max_batch_size"]
        assert max_batch_size is None or max_batch_size <= limit
        built_for_it = model.build.get("gather_generation_logits", False)
        gather = built_for_it if old else newer.get("gather_generation_logits", False)
        runner = cls()
        setattr(runner, "session" if old else "executor", Executor(model, rank, gather))
        return runner
