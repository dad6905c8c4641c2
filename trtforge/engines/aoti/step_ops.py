"""The kernels of a decode step as PyTorch operators, which AOTInductor compiles into a graph.

Tickets (int32, one for each tile of an output) must be zero, and are zero again afterwards.
"""

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from trtforge.engines.aoti.attention_kernel import attend_to_cache
from trtforge.engines.aoti.kernels import begin_rows, rows_times_weights
from trtforge.engines.aoti.step_state import residual_tiles
from trtforge.engines.aoti.tiles import attention_tile, linear_tile, power_of_two


@triton_op("trtforge::step_begin", mutates_args=())
def step_begin(
    tokens: Tensor, embedding: Tensor, norm: Tensor, tiles: int
) -> tuple[Tensor, Tensor, Tensor]:
    """tokens (B,) → their rows h (B, H), scaled by `norm`, and the sums of squares (tiles, B)."""
    (rows,), hidden = tokens.shape, embedding.shape[1]
    h = torch.empty((rows, hidden), dtype=embedding.dtype, device=embedding.device)
    scaled = torch.empty_like(h)
    squares = torch.empty((tiles, rows), dtype=torch.float32, device=embedding.device)
    wrap_triton(begin_rows)[(rows,)](
        h,
        scaled,
        squares,
        tokens,
        embedding,
        norm,
        ROWS=rows,
        K=hidden,
        TILES=tiles,
        BLOCK_K=power_of_two(hidden),
        BLOCK_TILES=power_of_two(tiles),
    )
    return h, scaled, squares


@triton_op("trtforge::step_linear", mutates_args={"tickets"})
def step_linear(
    x: Tensor,
    weight: Tensor,
    tickets: Tensor,
    epsilon: float,
    up: Tensor | None = None,
    squares: Tensor | None = None,
    bias: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """x (B, K) times weight (N, K)ᵀ → (B, N), in x's type or (`wide`) fp32.

    With `squares` (tiles, B), x is scaled by a norm's weight, and divided by its root mean square;
    with `up` the result is silu(x·weightᵀ)·(x·upᵀ); `bias` is added.
    """
    y = torch.empty(
        (x.shape[0], weight.shape[0]),
        dtype=torch.float32 if wide else x.dtype,
        device=x.device,
    )
    _product(y, None, x, weight, tickets, epsilon, up=up, squares=squares, bias=bias)
    return y


@triton_op("trtforge::step_choice", mutates_args={"tickets", "keys", "tokens", "sent", "positions"})
def step_choice(
    x: Tensor,
    weight: Tensor,
    tickets: Tensor,
    epsilon: float,
    squares: Tensor,
    keys: Tensor,
    tokens: Tensor,
    sent: Tensor,
    positions: Tensor,
) -> Tensor:
    """fp32 logits (B, V) of x (B, H), as `step_linear` gives them; and what a step ends with.

    That is the likeliest tokens in `tokens` (B,) and in a row of `sent` (2, B), by turns, and
    `positions` (B,) one further. `keys` are those of `step_state.new_keys`.
    """
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
    choice = (keys, tokens, sent, positions)
    _product(y, None, x, weight, tickets, epsilon, squares=squares, choice=choice)
    return y


@triton_op("trtforge::step_residual", mutates_args={"tickets"})
def step_residual(
    x: Tensor,
    weight: Tensor,
    tickets: Tensor,
    residual: Tensor,
    norm: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """h = residual + x (B, K) · weight (N, K)ᵀ → h (B, N), h scaled by `norm`, and sums of squares.

    The latter, (tiles, B) in fp32, are what `step_linear` takes with the scaled rows.
    """
    rows, n = x.shape[0], weight.shape[0]
    y = torch.empty((rows, n), dtype=x.dtype, device=x.device)
    scaled = torch.empty_like(y)
    tiles = residual_tiles(rows, n, x.shape[1], x.element_size())
    squares = torch.empty((tiles, rows), dtype=torch.float32, device=x.device)
    left = (scaled, squares, norm)
    _product(y, left, x, weight, tickets, 0.0, bias=bias, residual=residual)
    return y, scaled, squares


def _product(
    y: Tensor,
    left: tuple[Tensor, Tensor, Tensor] | None,
    x: Tensor,
    weight: Tensor,
    tickets: Tensor,
    epsilon: float,
    *,
    up: Tensor | None = None,
    squares: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    choice: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> None:
    (rows, k), n = x.shape, weight.shape[0]
    tile = linear_tile(rows, n, k, gated=up is not None, item_bytes=x.element_size())
    partial = torch.empty(tile.partial_size(n), dtype=torch.float32, device=x.device)
    scaled, scaled_squares, norm = (weight,) * 3 if left is None else left
    x_tiles = 0 if squares is None else squares.shape[0]
    early = _may_start_early(x)
    wrap_triton(rows_times_weights)[(tile.tiles(n), tile.split)](
        y,
        scaled,
        scaled_squares,
        x,
        weight if squares is None else squares,
        weight,
        weight if up is None else up,
        weight if bias is None else bias,
        weight if residual is None else residual,
        norm,
        partial,
        tickets,
        *(choice or (tickets,) * 4),
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
        X_TILES=x_tiles,
        BLOCK_TILES=power_of_two(max(1, x_tiles)),
        GATED=up is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        SCALES=left is not None,
        CHOOSES=choice is not None,
        EARLY=early,
        NEXT=tile.lets_next if early else 0,
        # Not where attention follows, which wants the room.
        AHEAD=tile.ahead if early and (left or up is not None or choice) else 0,
        num_warps=tile.warps,
    )


@triton_op("trtforge::step_attention", mutates_args={"k_cache", "v_cache", "tickets"})
def step_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tickets: Tensor,
) -> Tensor:
    """Rotate the new token's q and k, store k and v, attend: qkv (B, (Q+2K)·D) → (B, Q·D).

    cos and sin are tables (positions, D), caches (B, K, L, D); `positions` (B,) says how many
    tokens each sequence has in the cache.
    """
    sequences, kv_heads, length, head = k_cache.shape
    group = qkv.shape[1] // (kv_heads * head) - 2
    tile = attention_tile(sequences, kv_heads, group, head, length)
    early = _may_start_early(qkv)
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
        SCALE=head**-0.5,
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
        EARLY=early,
        NEXT=tile.lets_next if early else 0,
        num_warps=tile.warps,
    )
    return out


def _may_start_early(tensor: Tensor) -> bool:
    """From Hopper on, a kernel can wait for its input."""
    return tensor.is_cuda and torch.cuda.get_device_capability() >= (9, 0)
