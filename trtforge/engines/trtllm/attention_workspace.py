"""Scratch memory that TensorRT-LLM's attention plugin asks TensorRT for, one layer at a time.

The formulas are those of `getWorkspaceSizeForContext` and `getWorkspaceSizeForGeneration` of the
plugin (GPTAttentionPluginCommon in 0.16, AttentionOp in 1.x; every buffer is rounded up to 128
bytes). Without fused attention (context_fmha off, or a GPU older than Ampere) the context part
grows with batch × heads × length²: NVIDIA/TensorRT-LLM#2688 is such a build, and its 210571452800
bytes come out here to the byte. The scratch of XQA kernels is not modelled.
"""

from dataclasses import dataclass

_ALIGNMENT = 128
_CUBLAS_BYTES = 32 << 20
_FP32 = 4
# Opt-in shared memory of one block by compute capability (CUDA programming guide, table of
# technical specifications); what the plugin leaves alone of it.
_SHARED_BYTES = {
    "7.0": 96 << 10,
    "7.5": 64 << 10,
    "8.0": 163 << 10,
    "8.6": 99 << 10,
    "8.9": 99 << 10,
    "9.0": 227 << 10,
    "10.0": 227 << 10,
    "12.0": 99 << 10,
}
_SMALLEST_SHARED_BYTES = 64 << 10
_SHARED_RESERVE_BYTES = 2048
# Streaming multiprocessors of the largest data-centre GPU (B200). More of them need more scratch.
_PROCESSORS = 148


@dataclass(frozen=True)
class Attention:
    """One rank's attention: heads of this rank, not of the model.

    Attributes:
        element_bytes: Of one activation: 2 for bfloat16 and float16.
        fused: Whether context attention is fused (FMHA).
        paged_context: Whether it reads the paged cache (use_paged_context_fmha).
    """

    heads: int
    kv_heads: int
    head_size: int
    element_bytes: int = 2
    fused: bool = True
    paged_context: bool = True


def workspace_bytes(
    attention: Attention,
    *,
    batch: int,
    input_len: int,
    tokens: int,
    seq_len: int,
    compute_capability: str | None = None,
) -> int:
    """Scratch of the plugin: the larger of its context and its generation phase.

    Args:
        batch: Sequences times beams.
        input_len: Tokens of the longest prompt; only unfused attention depends on it.
        tokens: In one forward pass.
        seq_len: Tokens of the longest sequence.
        compute_capability: Such as 9.0; None assumes the smallest shared memory.
    """
    return max(
        context_bytes(attention, batch=batch, input_len=input_len, tokens=tokens),
        generation_bytes(
            attention, batch=batch, seq_len=seq_len, compute_capability=compute_capability
        ),
    )


def context_bytes(attention: Attention, *, batch: int, input_len: int, tokens: int) -> int:
    """Scratch of the context phase."""
    size, fused = attention.element_bytes, attention.fused
    query = attention.heads * attention.head_size
    cumulated = 4 * (batch + 1)
    buffers = [_CUBLAS_BYTES, cumulated, cumulated, cumulated, 2 * batch * attention.head_size]
    if fused:
        buffers.append(size * tokens * query if attention.paged_context else 0)
    else:
        scores = batch * attention.heads * input_len**2
        keys = size * batch * input_len * attention.kv_heads * attention.head_size
        buffers += [
            size * tokens * input_len,  # mask
            size * tokens * query,  # queries
            keys,
            keys,  # values
            size * scores,
            _FP32 * scores,
            size * tokens * query,  # queries, keys and values after the bias
            4 * tokens,
            4 * tokens,  # offsets of the padding
        ]
    return sum(map(_aligned, buffers))


def generation_bytes(
    attention: Attention, *, batch: int, seq_len: int, compute_capability: str | None = None
) -> int:
    """Scratch of the generation phase: partial results of the blocks a sequence is cut into."""
    shared = _SHARED_BYTES.get(compute_capability or "", _SMALLEST_SHARED_BYTES)
    per_block = (shared - _SHARED_RESERVE_BYTES) // (16 + 4 * attention.element_bytes)
    smallest = max(1, _up((seq_len + 4) // 4, per_block))
    blocks = max(smallest, _up(_PROCESSORS, attention.heads))
    rows = batch * attention.heads * blocks
    buffers = (attention.element_bytes * rows * attention.head_size, _FP32 * rows, _FP32 * rows)
    return sum(map(_aligned, buffers))


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _aligned(size_bytes: int) -> int:
    return _up(size_bytes, _ALIGNMENT) * _ALIGNMENT
