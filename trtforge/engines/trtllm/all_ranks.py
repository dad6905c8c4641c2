"""`trtllm-build` for several ranks, with one addition: each rank's timing cache is written.

Run as `python -m trtforge.engines.trtllm.all_ranks <arguments of trtllm-build>` in the toolchain.
Upstream's `builder.build` writes the cache of rank 0 only. The first and the last rank of a
pipeline have layers that no other has, and their tactics would be measured anew in every build.
Here `commands.build.build_and_save`, which upstream calls for every rank, in this process or in
workers, writes that of another rank to `model.cache.rank<N>` as soon as TensorRT is done.
Everything else is upstream's own `main`.
"""

import functools
import importlib
import sys
from typing import Any

_CACHE = "model.cache.rank{}"


def main() -> None:
    build: Any = importlib.import_module("tensorrt_llm.commands.build")
    builder: Any = importlib.import_module("tensorrt_llm.builder")
    known = callable(getattr(build, "build_and_save", None)) and all(
        callable(getattr(builder.Builder, name, None))
        for name in ("build_engine", "save_timing_cache")
    )
    if known:
        # By its name in this module, so that a worker process, which imports it, finds it too.
        this: Any = importlib.import_module("trtforge.engines.trtllm.all_ranks")
        this.upstream = build.build_and_save
        build.build_and_save = this.build_and_save
    else:
        print("trtforge: this trtllm-build is another; only rank 0's timing cache is written")
    build.main()


upstream: Any = None
"""`commands.build.build_and_save`, in the process where it was replaced."""


def build_and_save(rank: int, *args: Any, **kwargs: Any) -> Any:
    """Build one rank, as upstream does, and keep its timing cache."""
    original = upstream or importlib.import_module("tensorrt_llm.commands.build").build_and_save
    builder: Any = importlib.import_module("tensorrt_llm.builder").Builder
    build_engine = builder.build_engine

    @functools.wraps(build_engine)
    def build_and_keep(
        self: Any, network: Any, builder_config: Any, *more: Any, **named: Any
    ) -> Any:
        engine = build_engine(self, network, builder_config, *more, **named)
        try:
            if rank > 0:
                self.save_timing_cache(builder_config, _CACHE.format(rank))
        except Exception as error:
            # It would have made other builds quicker; the engine is what is asked for.
            print(f"trtforge: rank {rank}'s timing cache is not kept: {error}", file=sys.stderr)
        return engine

    builder.build_engine = build_and_keep
    try:
        return original(rank, *args, **kwargs)
    finally:
        builder.build_engine = build_engine


if __name__ == "__main__":
    main()
