"""What one rank of an engine needs of its GPU, part by part. Standard library only: drivers use it.

Loading an engine checks the same weights, caches and reserve against what is free of the GPU.
"""

from trtforge.engines.memory import CUDA_ROW, NCCL_BYTES, MemoryRow

RESERVE_BYTES = 2 << 30
"""What running takes of a GPU's memory beside weights and caches: activations, logits, recorded
steps, the work space of libraries."""

BFLOAT16_BYTES = 2


def cache_bytes_per_sequence(
    *, layers: int, kv_heads: int, head_size: int, max_seq_len: int
) -> int:
    """Keys and values of one sequence on a rank that has so many kv heads, in bfloat16.

    One token more than can be used: see `trtforge.engines.aoti.graphs.Limits.cache_len`.
    """
    return 2 * layers * kv_heads * (max_seq_len + 1) * head_size * BFLOAT16_BYTES


def gpu_rows(
    *,
    weight_bytes: int,
    layers: int,
    kv_heads: int,
    head_size: int,
    ranks: int,
    max_batch_size: int,
    max_seq_len: int,
) -> tuple[MemoryRow, ...]:
    """What one of so many ranks needs while the engine runs; all need the same.

    Args:
        weight_bytes, kv_heads: Of one rank.
    """
    each = cache_bytes_per_sequence(
        layers=layers, kv_heads=kv_heads, head_size=head_size, max_seq_len=max_seq_len
    )
    rows = [
        MemoryRow(
            "gpu", "weights", weight_bytes, True, f"tensors of a rank: 1/{ranks} of each layer"
        ),
        MemoryRow(
            "gpu",
            "KV cache",
            max_batch_size * each,
            True,
            f"{max_batch_size} sequences · 2 · {layers} layers · {kv_heads} kv heads · "
            f"{head_size} · ({max_seq_len} + 1) tokens · {BFLOAT16_BYTES} B",
        ),
        MemoryRow(
            "gpu",
            "reserve",
            RESERVE_BYTES,
            False,
            "2 GiB: activations, logits, recorded steps, work space of libraries",
        ),
    ]
    if ranks > 1:
        rows.append(MemoryRow("gpu", "communication", NCCL_BYTES, False, "NCCL 0.5 GB"))
    return (*rows, CUDA_ROW)
