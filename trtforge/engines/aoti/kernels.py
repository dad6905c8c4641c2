"""Triton kernels of a decode step on a GPU: what bounds a step is reading the weights once.

A step of one layer is five kernels: qkv; rotation, cache and attention; output projection and
residual; gate, up and silu; down projection and residual. A norm is no kernel of its own: whoever
makes a row also leaves it scaled by the next norm's weight, with its sums of squares, and whoever
multiplies it divides the result by the root of their mean.

Sums that several programs share (`SPLIT`, `SPLITS`) are finished by the last of them, which knows
itself by a ticket; it adds in a fixed order, so that a step always gives the same bits. Tickets are
zero before and after each kernel.
"""

# Triton compiles these functions; Python never runs them.
# ruff: noqa: N803
# mypy: ignore-errors

import triton
import triton.language as tl

from trtforge.engines.aoti.waiting import let_next_start, let_next_start_after, wait_for_input


@triton.jit
def begin_rows(
    h,
    scaled,
    squares,
    tokens,
    embedding,
    norm,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """Rows of `embedding` (V, K), and what `rows_times_weights` leaves beside a row.

    That is the row scaled by `norm` (K,), and sums of its squares (TILES, ROWS); they are all in
    the first.
    """
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK_K)
    in_k = k < K
    token = tl.load(tokens + row).to(tl.int64)
    values = tl.load(embedding + token * K + k, mask=in_k, other=0.0)
    tl.store(h + row * K + k, values, mask=in_k)
    wide = values.to(tl.float32)
    weights = tl.load(norm + k, mask=in_k, other=0.0).to(tl.float32)
    tl.store(scaled + row * K + k, (wide * weights).to(scaled.dtype.element_ty), mask=in_k)
    tile = tl.arange(0, BLOCK_TILES)
    sums = tl.where(tile == 0, tl.sum(wide * wide, 0), 0.0)
    tl.store(squares + tile * ROWS + row, sums, mask=tile < TILES)


@triton.jit
def rows_times_weights(
    y,
    scaled,
    scaled_squares,
    x,
    x_squares,
    weight,
    weight_up,
    bias,
    residual,
    norm,
    partial,
    tickets,
    keys,
    tokens,
    sent,
    positions,
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
    X_TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALES: tl.constexpr,
    CHOOSES: tl.constexpr,
    EARLY: tl.constexpr,
    NEXT: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """y (M, N) = f(x (M, K) · weight (N, K)ᵀ), and what belongs before and after it.

    X_TILES: if not 0, x is scaled by a norm's weight and waits to be divided by the root mean
    square of its row, of which `x_squares` (X_TILES, M) are the sums. GATED: y is
    silu(x · weightᵀ) · (x · weight_upᵀ). BIAS and RESIDUAL are added. SCALES: y is also left
    `scaled` by `norm`, with its sums of squares (tiles, M). DOT: with matrix units, as many rows as
    BLOCK_M; without, one row. CHOOSES: y are logits; the columns of the highest are left in
    `tokens` (M,) and, by turns, in one row of `sent` (2, M), and `positions` (M,) are counted up;
    of `keys` see `step_state.new_keys`.
    EARLY: the kernel may be started before x is there (from Hopper on), and waits for it; AHEAD:
    with the first tile of the weight loaded, which is added 1 before or 2 after the others (0: not
    so). NEXT: when the kernel after this one may be launched:
    0 not before the end, 1 at once, 2 when the sums are there.
    """
    tile = tl.program_id(0)
    part = tl.program_id(1)
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
    if NEXT == 1:
        w_at += let_next_start()
    in_k = part * each + k < K
    if AHEAD:
        w0 = _tile(w_at, in_n, in_k, whole_n, whole_k)
        if GATED:
            u0 = _tile(up_at, in_n, in_k, whole_n, whole_k)
    ready = 0
    if EARLY:
        ready = wait_for_input()
    x += ready
    if X_TILES:
        t = tl.arange(0, BLOCK_TILES)
        sums_at = x_squares + ready + t[:, None] * M + m[None, :]
        squares = tl.load(sums_at, mask=(t < X_TILES)[:, None] & in_m[None, :], other=0.0)

    if DOT:
        # The weight is the left side, of which Hopper's matrix units want 64 rows.
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        x_at = x + part * each + m[:, None] * K + k[None, :]
        if AHEAD:
            x_mask = in_m[:, None] if whole_k else in_m[:, None] & in_k[None, :]
            x0 = tl.load(x_at, mask=x_mask, other=0.0)
        if AHEAD == 1:
            acc = tl.dot(w0, tl.trans(x0), acc)
            if GATED:
                up = tl.dot(u0, tl.trans(x0), up)
        for start in tl.range(BLOCK_K if AHEAD else 0, each, BLOCK_K, num_stages=STAGES):
            in_k = part * each + start + k < K
            x_mask = in_m[:, None] if whole_k else in_m[:, None] & in_k[None, :]
            rows = tl.load(x_at + start, mask=x_mask, other=0.0)
            w = _tile(w_at + start, in_n, in_k, whole_n, whole_k)
            acc = tl.dot(w, tl.trans(rows), acc)
            if GATED:
                u = _tile(up_at + start, in_n, in_k, whole_n, whole_k)
                up = tl.dot(u, tl.trans(rows), up)
        if AHEAD == 2:
            acc = tl.dot(w0, tl.trans(x0), acc)
            if GATED:
                up = tl.dot(u0, tl.trans(x0), up)
        acc = tl.trans(acc)
        up = tl.trans(up)
    else:
        wide_acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        wide_up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        if AHEAD:
            x0 = tl.load(x + part * each + k, mask=in_k, other=0.0).to(tl.float32)
        if AHEAD == 1:
            wide_acc += w0.to(tl.float32) * x0[None, :]
            if GATED:
                wide_up += u0.to(tl.float32) * x0[None, :]
        for start in tl.range(BLOCK_K if AHEAD else 0, each, BLOCK_K, num_stages=STAGES):
            in_k = part * each + start + k < K
            row = tl.load(x + part * each + start + k, mask=in_k, other=0.0).to(tl.float32)
            w = _tile(w_at + start, in_n, in_k, whole_n, whole_k)
            wide_acc += w.to(tl.float32) * row[None, :]
            if GATED:
                u = _tile(up_at + start, in_n, in_k, whole_n, whole_k)
                wide_up += u.to(tl.float32) * row[None, :]
        if AHEAD == 2:
            wide_acc += w0.to(tl.float32) * x0[None, :]
            if GATED:
                wide_up += u0.to(tl.float32) * x0[None, :]
        acc = tl.sum(wide_acc, 1)[None, :]
        up = tl.sum(wide_up, 1)[None, :]

    if NEXT == 2:
        acc = let_next_start_after(acc)
    # Each part writes its sums, and the last one to do so adds them all.
    last = True
    if SPLIT > 1:
        size: tl.constexpr = BLOCK_M * BLOCK_N
        mine = partial + (tile * SPLIT + part) * (2 * size)
        at = m[:, None] * BLOCK_N + n[None, :]
        tl.store(mine + at, acc)
        if GATED:
            tl.store(mine + size + at, up)
        tl.debug_barrier()
        last = tl.atomic_add(tickets + tile, 1, sem="acq_rel") == SPLIT - 1
        if last:
            tl.store(tickets + tile, 0)
            acc = tl.zeros_like(acc)
            up = tl.zeros_like(up)
            for other in tl.static_range(SPLIT):
                theirs = partial + (tile * SPLIT + other) * (2 * size)
                acc += tl.load(theirs + at, cache_modifier=".cg")
                if GATED:
                    up += tl.load(theirs + size + at, cache_modifier=".cg")
    if last:
        if X_TILES:
            inverse = tl.rsqrt(tl.sum(squares, 0) / K + EPSILON)[:, None]
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
            acc += tl.load(residual + ready + out_at, mask=out_mask, other=0.0).to(tl.float32)
        out = acc.to(y.dtype.element_ty)
        tl.store(y + out_at, out, mask=out_mask)
        if SCALES:
            wide = tl.where(out_mask, out.to(tl.float32), 0.0)
            weights = tl.load(norm + column, mask=in_n, other=0.0).to(tl.float32)
            left = (wide * weights[None, :]).to(scaled.dtype.element_ty)
            tl.store(scaled + out_at, left, mask=out_mask)
            tl.store(scaled_squares + tile * M + m, tl.sum(wide * wide, 1), mask=in_m)
        if CHOOSES:
            _choose(out, out_mask, column, in_m, m, keys, tokens, sent, positions, M, N, BLOCK_N)


@triton.jit
def _choose(
    logits,
    mask,
    column,
    in_m,
    m,
    keys,
    tokens,
    sent,
    positions,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Leave each row's highest key in `keys`; the last program makes it the row's token.

    A key is a logit, as an integer of the same order, above 2³¹ - 1 less the column: of equal
    logits that of the first column is the highest.
    """
    least: tl.constexpr = -0x8000000000000000
    bits = logits.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    mine = (ordered << 32) | (0x7FFFFFFF - column)[None, :].to(tl.int64)
    highest = tl.max(tl.where(mask, mine, least), 1)
    tl.atomic_max(keys + m, highest, mask=in_m, sem="relaxed")
    tl.debug_barrier()
    programs: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    if tl.atomic_add(keys + M, 1, sem="acq_rel") == programs - 1:
        tl.store(keys + M, 0)
        steps = tl.load(keys + M + 1)
        tl.store(keys + M + 1, steps + 1)
        key = tl.atomic_xchg(keys + m, tl.full(m.shape, least, tl.int64), mask=in_m, sem="relaxed")
        # Where every logit is NaN, some token, but one of the vocabulary.
        token = tl.minimum(0x7FFFFFFF - (key & 0x7FFFFFFF), N - 1)
        tl.store(tokens + m, token, mask=in_m)
        tl.store(sent + steps % 2 * M + m, token, mask=in_m)
        position = tl.load(positions + m, mask=in_m, other=0)
        tl.store(positions + m, position + 1, mask=in_m)


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
