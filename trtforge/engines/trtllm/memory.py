"""What an engine needs of a GPU, of the host and of the disk, before any of them is asked for.

Weights and KV cache are exact: they follow from the checkpoint's config.json and the engine's
limits. Everything else is an estimate, is marked as one, and carries its formula. The estimates
were made to lie above what upstream prints: Llama-2-7B in FP8 with 4096 sequences of 4098 tokens
took 929 MiB of execution context and 5.5 GiB of runtime and decoder buffers on an H100 (upstream's
benchmarks/python README, 0.12), DeepSeek-R1-Distill-Qwen-1.5B at the default limits 922 MiB.

The KV cache is counted in full, for `max_batch_size` sequences of `max_seq_len` tokens: an engine
that cannot hold what it promises is refused. TensorRT-LLM itself would run it, with fewer sequences
at once than its max_batch_size says; `kv_tokens` asks for that.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trtforge.engines.memory import LONGEST, MOST_SEQUENCES, MemoryPlan, MemoryRow, largest
from trtforge.engines.trtllm.memory_rows import EngineLimits, Limits, Model


def estimate(
    config: Mapping[str, Any],
    engine: EngineLimits,
    *,
    gpu_bytes: int | None = None,
    host_bytes: int | None = None,
    disk_bytes: int | None = None,
    release: str = "1.2",
    compute_capability: str | None = None,
    kv_tokens: int | None = None,
    build_workers: int = 1,
) -> MemoryPlan:
    """What an engine of this checkpoint needs, on the rank that needs the most.

    Args:
        config: config.json of the TensorRT-LLM checkpoint.
        gpu_bytes: Memory of one GPU, all of it.
        host_bytes, disk_bytes: Free memory and disk of the machine that builds.
        release: Of TensorRT-LLM: 0.16 has other defaults than 1.x.
        compute_capability: Of the GPU, such as 9.0.
        kv_tokens: That the KV cache must hold, over all sequences; None: all of them at full
            length.
        build_workers: Ranks built at the same time.

    Raises:
        ConfigValueError: config.json lacks a number that is needed.
    """
    model = Model.read(config)
    limits = Limits.read(engine, release, compute_capability, kv_tokens)

    def worst(limits: Limits) -> tuple[int, tuple[MemoryRow, ...]]:
        ranks = [(stage * model.tp, model.gpu_rows(limits, stage)) for stage in range(model.pp)]
        return max(ranks, key=lambda rank: sum(row.size_bytes for row in rank[1]))

    def fits(limits: Limits) -> bool:
        return sum(row.size_bytes for row in worst(limits)[1]) <= (gpu_bytes or 0)

    rank, rows = worst(limits)
    known = gpu_bytes is not None
    return MemoryPlan(
        rank=rank,
        ranks=model.tp * model.pp,
        rows=(*rows, *model.host_rows(build_workers), *model.disk_rows()),
        gpu_bytes=gpu_bytes,
        host_bytes=host_bytes,
        disk_bytes=disk_bytes,
        max_batch_size=largest(lambda n: fits(replace(limits, batch=n)), MOST_SEQUENCES)
        if known
        else None,
        max_seq_len=largest(lambda n: fits(replace(limits, seq_len=n)), LONGEST) if known else None,
        asked={
            "max_batch_size": engine.max_batch_size,
            "max_input_len": engine.max_input_len,
            "max_seq_len": engine.max_seq_len,
            "max_num_tokens": engine.max_num_tokens,
            "tp": model.tp,
            "pp": model.pp,
        },
    )
