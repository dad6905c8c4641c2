"""The kernels of a decode step as PyTorch operators, which AOTInductor compiles into a graph.

Tickets (int32, one for each tile of an output) must be zero, and are zero again afterwards.
"""

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from trtforge.engines.aoti.attention_kernel import attend_to_cache
from trtforge.engines.aoti.kernels import rows_times_weights
from trtforge.engines.aoti.tiles import ahead_bytes, attention_tile, linear_tile


@triton_op("trtforge::step_linear", mutates_args={"tickets"})
def step_linear(
    x: Tensor,
    weight: Tensor,
    tickets: Tensor,
    epsilon: float,
    up: Tensor | None = None,
    norm: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    ahead: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """x (B, K) times weight (N, K)ᵀ → (B, N), in x's type or (`wide`) fp32.

    With `norm` x is normalised and scaled first; with `up` the result is silu(x·weightᵀ)·(x·upᵀ);
    `bias` and `residual` are added. `ahead` is the weight that the next kernel reads.
    """
    rows, k = x.shape
    n = weight.shape[0]
    tile = linear_tile(rows, n, k, gated=up is not None, item_bytes=x.element_size())
    y = torch.empty((rows, n), dtype=torch.float32 if wide else x.dtype, device=x.device)
    partial = torch.empty(tile.partial_size(n), dtype=torch.float32, device=x.device)
    wrap_triton(rows_times_weights)[(tile.tiles(n), tile.split)](
        y,
        x,
        weight if norm is None else norm,
        weight,
        weight if up is None else up,
        weight if bias is None else bias,
        weight if residual is None else residual,
        partial,
        tickets,
        weight if ahead is None else ahead,
        EPSILON=epsilon,
        M=rows,
        N=n,
        K=k,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        SPLIT=tile.split,
        STAGES=tile.stages,
        DOT=tile.dot,
        NORM=norm is not None,
        GATED=up is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        AHEAD=0 if ahead is None else ahead_bytes(*_rows_of(ahead)),
        AHEAD_ROWS=0 if ahead is None else _rows_of(ahead)[0],
        AHEAD_ROW_BYTES=0 if ahead is None else _rows_of(ahead)[1],
        THREADS=32 * tile.warps,
        num_warps=tile.warps,
    )
    return y


@triton_op("trtforge::step_attention", mutates_args={"k_cache", "v_cache", "tickets"})
def step_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tickets: Tensor,
    ahead: Tensor | None = None,
) -> Tensor:
    """Rotate the new token's q and k, store k and v, attend: qkv (B, (Q+2K)·D) → (B, Q·D).

    cos and sin are tables (positions, D), caches (B, K, L, D); `positions` (B,) says how many
    tokens each sequence has in the cache.
    """
    sequences, kv_heads, length, head = k_cache.shape
    group = qkv.shape[1] // (kv_heads * head) - 2
    tile = attention_tile(sequences, kv_heads, group, head, length)
    out = torch.empty((sequences, kv_heads * group * head), dtype=qkv.dtype, device=qkv.device)
    partial = torch.empty(
        tile.partial_size(sequences, kv_heads), dtype=torch.float32, device=qkv.device
    )
    wrap_triton(attend_to_cache)[(sequences * kv_heads, tile.splits)](
        out,
        qkv,
        cos,
        sin,
        positions,
        k_cache,
        v_cache,
        partial,
        tickets,
        qkv if ahead is None else ahead,
        SCALE=head**-0.5,
        SEQUENCES=sequences,
        LENGTH=length,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD=head,
        GROUP_PAD=tile.group_pad,
        HEAD_PAD=tile.head_pad,
        BLOCK=tile.block,
        SPLITS=tile.splits,
        LEAST=tile.least,
        STAGES=tile.stages,
        AHEAD=0 if ahead is None else ahead_bytes(*_rows_of(ahead)),
        AHEAD_ROWS=0 if ahead is None else _rows_of(ahead)[0],
        AHEAD_ROW_BYTES=0 if ahead is None else _rows_of(ahead)[1],
        THREADS=32 * tile.warps,
        num_warps=tile.warps,
    )
    return out


def _rows_of(weight: Tensor) -> tuple[int, int]:
    """How many rows, and bytes of each."""
    return weight.shape[0], weight.shape[1] * weight.element_size()
