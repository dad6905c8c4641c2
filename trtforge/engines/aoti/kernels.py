"""Triton kernels of a decode step on a GPU: what bounds a step is reading the weights once.

A step of one layer is five kernels: norm and qkv; rotation, cache and attention; output projection
and residual; norm, gate, up and silu; down projection and residual. Each of them, when it has read
its own weights, asks for the first of the next one's (`ahead`), so that memory is not idle while
one kernel drains and the next one starts.

Sums that several programs share (`SPLIT`, `SPLITS`) are finished by the last of them, which knows
itself by a ticket; it adds in a fixed order, so that a step always gives the same bits. Tickets are
zero before and after each kernel.
"""

# Triton compiles these functions; Python never runs them.
# ruff: noqa: N803
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def prefetch(
    weight,
    program,
    PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    BYTES: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Ask for the first BYTES of every row of a weight, into L2; each program for its share.

    Returns:
        0, to be added to a result. To the compiler it is a number that the instruction computes:
        PyTorch's analysis of what a kernel changes takes nothing with side effects.
    """
    nothing = tl.zeros((THREADS,), tl.int32)
    for turn in tl.static_range((ROWS + PROGRAMS * THREADS - 1) // (PROGRAMS * THREADS)):
        row = (turn * PROGRAMS + program) * THREADS + tl.arange(0, THREADS)
        nothing |= tl.inline_asm_elementwise(
            "{.reg .pred wanted; setp.lt.s32 wanted, $2, $3;"
            " @wanted cp.async.bulk.prefetch.L2.global [$1], $4; mov.u32 $0, 0;}",
            "=r,l,r,r,r",
            [
                weight.to(tl.int64) + row.to(tl.int64) * ROW_BYTES,
                row,
                tl.full((THREADS,), ROWS, tl.int32),
                tl.full((THREADS,), BYTES, tl.int32),
            ],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return tl.max(nothing, 0).to(tl.float32)


@triton.jit
def rows_times_weights(
    y,
    x,
    norm,
    weight,
    weight_up,
    bias,
    residual,
    partial,
    tickets,
    ahead,
    EPSILON: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    DOT: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    AHEAD: tl.constexpr,
    AHEAD_ROWS: tl.constexpr,
    AHEAD_ROW_BYTES: tl.constexpr,
    THREADS: tl.constexpr,
):
    """y (M, N) = f(x (M, K)) · weight (N, K)ᵀ, and what belongs before and after it.

    NORM: x is normalised (RMS) and scaled by `norm`; the division by the root mean square is done
    last, so that x is read once. GATED: y is silu(x · weightᵀ) · (x · weight_upᵀ). BIAS and
    RESIDUAL are added. DOT: with matrix units, as many rows as BLOCK_M; without, one row.
    AHEAD: bytes to ask for of each of the AHEAD_ROWS rows that the next kernel reads.
    """
    tile = tl.program_id(0)
    part = tl.program_id(1)
    tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    each: tl.constexpr = ((K + SPLIT - 1) // SPLIT + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    whole_n: tl.constexpr = N % BLOCK_N == 0
    whole_k: tl.constexpr = each * SPLIT == K
    n = tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    in_n = tile * BLOCK_N + n < N
    in_m = m < M
    first = tl.program_id(0).to(tl.int64) * BLOCK_N * K + part * each
    w_at = weight + first + n[:, None] * K + k[None, :]
    up_at = weight_up + first + n[:, None] * K + k[None, :]

    if DOT:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        x_at = x + part * each + m[:, None] * K + k[None, :]
        for start in tl.range(0, each, BLOCK_K, num_stages=STAGES):
            in_k = part * each + start + k < K
            x_mask = in_m[:, None] if whole_k else in_m[:, None] & in_k[None, :]
            rows = tl.load(x_at + start, mask=x_mask, other=0.0)
            w = _tile(w_at + start, in_n, in_k, whole_n, whole_k)
            if NORM:
                scale = tl.load(norm + part * each + start + k, mask=in_k, other=0.0)
                wide = rows.to(tl.float32)
                squares += wide * wide
                rows = (wide * scale.to(tl.float32)[None, :]).to(rows.dtype)
            acc = tl.dot(rows, tl.trans(w), acc)
            if GATED:
                u = _tile(up_at + start, in_n, in_k, whole_n, whole_k)
                up = tl.dot(rows, tl.trans(u), up)
        square = tl.sum(squares, 1)
    else:
        wide_acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        wide_up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        squares_1 = tl.zeros((BLOCK_K,), tl.float32)
        for start in tl.range(0, each, BLOCK_K, num_stages=STAGES):
            in_k = part * each + start + k < K
            row = tl.load(x + part * each + start + k, mask=in_k, other=0.0).to(tl.float32)
            w = _tile(w_at + start, in_n, in_k, whole_n, whole_k)
            if NORM:
                squares_1 += row * row
                scale = tl.load(norm + part * each + start + k, mask=in_k, other=0.0)
                row = row * scale.to(tl.float32)
            wide_acc += w.to(tl.float32) * row[None, :]
            if GATED:
                u = _tile(up_at + start, in_n, in_k, whole_n, whole_k)
                wide_up += u.to(tl.float32) * row[None, :]
        acc = tl.sum(wide_acc, 1)[None, :]
        up = tl.sum(wide_up, 1)[None, :]
        square = tl.sum(squares_1, 0) + tl.zeros((BLOCK_M,), tl.float32)

    if AHEAD:
        program = part * tiles + tile
        acc += prefetch(ahead, program, tiles * SPLIT, AHEAD_ROWS, AHEAD_ROW_BYTES, AHEAD, THREADS)

    # Each part writes its sums, and the last one to do so adds them all.
    last = True
    if SPLIT > 1:
        size: tl.constexpr = BLOCK_M * BLOCK_N
        mine = partial + (tile * SPLIT + part) * (2 * size + BLOCK_M)
        at = m[:, None] * BLOCK_N + n[None, :]
        tl.store(mine + at, acc)
        if GATED:
            tl.store(mine + size + at, up)
        if NORM:
            tl.store(mine + 2 * size + m, square)
        tl.debug_barrier()
        last = tl.atomic_add(tickets + tile, 1, sem="acq_rel") == SPLIT - 1
        if last:
            tl.store(tickets + tile, 0)
            acc = tl.zeros_like(acc)
            up = tl.zeros_like(up)
            square = tl.zeros_like(square)
            for other in tl.static_range(SPLIT):
                theirs = partial + (tile * SPLIT + other) * (2 * size + BLOCK_M)
                acc += tl.load(theirs + at, cache_modifier=".cg")
                if GATED:
                    up += tl.load(theirs + size + at, cache_modifier=".cg")
                if NORM:
                    square += tl.load(theirs + 2 * size + m, cache_modifier=".cg")
    if last:
        if NORM:
            inverse = tl.rsqrt(square / K + EPSILON)[:, None]
            acc *= inverse
            up *= inverse
        column = tile * BLOCK_N + n
        if BIAS:
            acc += tl.load(bias + column, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if GATED:
            acc = acc * tl.sigmoid(acc) * up
        out_at = m[:, None] * N + column[None, :]
        out_mask = in_m[:, None] & in_n[None, :]
        if RESIDUAL:
            acc += tl.load(residual + out_at, mask=out_mask, other=0.0).to(tl.float32)
        tl.store(y + out_at, acc.to(y.dtype.element_ty), mask=out_mask)


@triton.jit
def _tile(at, in_n, in_k, whole_n: tl.constexpr, whole_k: tl.constexpr):
    """A tile of a weight; every number of it is read once in a step, so nothing keeps it."""
    if whole_n and whole_k:
        tile = tl.load(at, eviction_policy="evict_first")
    elif whole_k:
        tile = tl.load(at, mask=in_n[:, None], other=0.0, eviction_policy="evict_first")
    else:
        mask = in_n[:, None] & in_k[None, :]
        tile = tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first")
    return tile
