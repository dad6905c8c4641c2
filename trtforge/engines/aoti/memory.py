"""What an aoti engine needs of a GPU, before anything is pulled or compiled.

Weights and KV cache are exact: an engine holds all of both as long as it is loaded, and loading
refuses what has no room for them. Compiling is not counted: a graph is traced with the weights and
the caches of one layer. (Of the decode kernels every size is traced at the same time as the others,
by a process of its own, with a CUDA context each: for a small engine that can be more.)
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from trtforge.checkpoint.config_keys import count
from trtforge.checkpoint.expected import expected_tensors
from trtforge.engines.aoti.memory_rows import BFLOAT16_BYTES, gpu_rows
from trtforge.engines.memory import LONGEST, MOST_SEQUENCES, MemoryPlan, MemoryRow, largest
from trtforge.spec import EngineSpec


def estimate(
    config: Mapping[str, Any], engine: EngineSpec, *, gpu_bytes: int | None = None
) -> MemoryPlan:
    """What each GPU needs of an engine of this checkpoint; its ranks are alike.

    Args:
        config: config.json of the TensorRT-LLM checkpoint.
        gpu_bytes: Memory of one GPU, all of it.

    Raises:
        ConfigValueError: config.json lacks a number that is needed.
    """
    layers = count(config, "num_hidden_layers")
    tp = int((config.get("mapping") or {}).get("tp_size") or 1)
    tensors = expected_tensors(config, tp=tp, layers=layers, first=True, last=True)
    weight_bytes = sum(prod(shape) for shape in tensors.values()) * BFLOAT16_BYTES

    def rows(batch: int, seq_len: int) -> tuple[MemoryRow, ...]:
        return gpu_rows(
            weight_bytes=weight_bytes,
            layers=layers,
            # Heads fewer than ranks are held by several.
            kv_heads=max(count(config, "num_key_value_heads") // tp, 1),
            head_size=count(config, "head_size"),
            ranks=tp,
            max_batch_size=batch,
            max_seq_len=seq_len,
        )

    def fits(batch: int, seq_len: int) -> bool:
        return sum(row.size_bytes for row in rows(batch, seq_len)) <= (gpu_bytes or 0)

    batch, seq_len = engine.max_batch_size, engine.max_seq_len
    known = gpu_bytes is not None
    return MemoryPlan(
        rank=0,
        ranks=tp,
        rows=rows(batch, seq_len),
        gpu_bytes=gpu_bytes,
        host_bytes=None,
        disk_bytes=None,
        max_batch_size=largest(lambda n: fits(n, seq_len), MOST_SEQUENCES) if known else None,
        max_seq_len=largest(lambda n: fits(batch, n), LONGEST) if known else None,
        asked={
            "max_batch_size": batch,
            "max_input_len": engine.max_input_len,
            "max_seq_len": seq_len,
            "max_num_tokens": engine.max_num_tokens,
            "tp": tp,
        },
    )
