"""Triton kernel of a decode step's attention: rotate, store, and read only the positions in use."""

# Triton compiles these functions; Python never runs them.
# ruff: noqa: N803
# mypy: ignore-errors

import triton
import triton.language as tl

from trtforge.engines.aoti.waiting import let_next_start, let_next_start_after, wait_for_input


@triton.jit
def attend_to_cache(
    out,
    qkv,
    cos,
    sin,
    positions,
    k_cache,
    v_cache,
    partial,
    tickets,
    SCALE: tl.constexpr,
    LENGTH: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    NEXT: tl.constexpr,
):
    """Attention of one new token of each sequence, GROUP query heads per key/value head.

    qkv (B, (KV_HEADS · (GROUP + 2)) · HEAD) is not rotated yet; cos and sin are tables (positions,
    HEAD); caches are (B, KV_HEADS, LENGTH, HEAD). The sequence in row b has positions[b] tokens in
    the cache; the new one's key and value are written there too. Its positions are shared out
    among up to SPLITS programs, to each at least LEAST of them.
    GROUP_PAD is GROUP, or 16 or more for matrix units.
    EARLY, NEXT: as for `kernels.rows_times_weights`.
    """
    if NEXT == 1:
        positions += let_next_start()
    sequence = tl.program_id(0) // KV_HEADS
    head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    used = tl.load(positions + sequence).to(tl.int32)
    used = tl.minimum(tl.maximum(used, 0), LENGTH - 2)
    each = tl.maximum(tl.cdiv(tl.cdiv(used, SPLITS), BLOCK) * BLOCK, LEAST)
    busy = tl.maximum(tl.cdiv(used, each), 1)
    if split >= busy:
        return
    half: tl.constexpr = HEAD // 2
    half_pad: tl.constexpr = HEAD_PAD // 2
    g = tl.arange(0, GROUP_PAD)
    d = tl.arange(0, half_pad)
    whole = tl.arange(0, HEAD_PAD)
    in_half = d < half
    in_whole = whole < HEAD
    in_group = g < GROUP
    base = (sequence * KV_HEADS + head).to(tl.int64) * LENGTH * HEAD
    keys, values = k_cache + base, v_cache + base
    start = split * each
    end = tl.minimum(start + each, used)
    t = tl.arange(0, BLOCK)
    c = tl.load(cos + used * HEAD + d, mask=in_half, other=0.0).to(tl.float32)
    s = tl.load(sin + used * HEAD + d, mask=in_half, other=0.0).to(tl.float32)
    if GROUP_PAD == 1:
        # What is in the cache already need not be waited for.
        low, high, v = _block(keys, values, start, end, t, d, whole, HEAD, half, in_half, in_whole)
    if EARLY:
        qkv += wait_for_input()

    # The new token: its queries, key and value.
    row = qkv + sequence.to(tl.int64) * (KV_HEADS * (GROUP + 2) * HEAD)
    q_at = row + (head * GROUP + g)[:, None] * HEAD + d[None, :]
    q_mask = in_group[:, None] & in_half[None, :]
    q_low = tl.load(q_at, mask=q_mask, other=0.0).to(tl.float32)
    q_high = tl.load(q_at + half, mask=q_mask, other=0.0).to(tl.float32)
    dtype = qkv.dtype.element_ty
    q1 = (q_low * c[None, :] - q_high * s[None, :]).to(dtype)
    q2 = (q_high * c[None, :] + q_low * s[None, :]).to(dtype)
    k_at = row + (KV_HEADS * GROUP + head) * HEAD + d
    k_low = tl.load(k_at, mask=in_half, other=0.0).to(tl.float32)
    k_high = tl.load(k_at + half, mask=in_half, other=0.0).to(tl.float32)
    k1 = (k_low * c - k_high * s).to(dtype)
    k2 = (k_high * c + k_low * s).to(dtype)
    value = tl.load(row + (KV_HEADS * (GROUP + 1) + head) * HEAD + whole, mask=in_whole, other=0.0)
    if split == 0:
        tl.store(keys + used * HEAD + d, k1, mask=in_half)
        tl.store(keys + used * HEAD + half + d, k2, mask=in_half)
        tl.store(values + used * HEAD + whole, value, mask=in_whole)

    # Scores are in powers of two. The first program begins with the new token, others with nothing.
    scale: tl.constexpr = SCALE * 1.4426950408889634
    products = q1.to(tl.float32) * k1.to(tl.float32)[None, :]
    products += q2.to(tl.float32) * k2.to(tl.float32)[None, :]
    new = tl.sum(products, 1) * scale
    if GROUP_PAD == 1:
        # Every slot of a block has its own maximum and sum, so that the loop needs no reduction
        # across threads but that of the scores; one at the end brings them together.
        first = (t == 0) & (split == 0)
        top = tl.where(first, tl.sum(new, 0), float("-inf"))
        total = tl.where(first, 1.0, 0.0)
        acc = tl.where(first[:, None], value.to(tl.float32)[None, :], 0.0)
        q1_row = tl.sum(q1.to(tl.float32), 0)
        q2_row = tl.sum(q2.to(tl.float32), 0)
        for begin in tl.range(start, end, BLOCK, num_stages=1):
            if STAGES > 1:
                low2, high2, v2 = _block(
                    keys, values, begin + BLOCK, end, t, d, whole, HEAD, half, in_half, in_whole
                )
            inside = begin + t < end
            sums = low.to(tl.float32) * q1_row[None, :] + high.to(tl.float32) * q2_row[None, :]
            score = tl.where(inside, tl.sum(sums, 1) * scale, float("-inf"))
            higher = tl.maximum(top, score)
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            shrink = tl.exp2(top - safe)
            weight = tl.exp2(score - safe)
            total = total * shrink + weight
            acc = acc * shrink[:, None] + weight[:, None] * v.to(tl.float32)
            top = higher
            if STAGES > 1:
                low, high, v = low2, high2, v2
            else:
                low, high, v = _block(
                    keys, values, begin + BLOCK, end, t, d, whole, HEAD, half, in_half, in_whole
                )
        highest = tl.max(top, 0)
        shrink = tl.exp2(top - highest)
        top_g = tl.zeros((GROUP_PAD,), tl.float32) + highest
        total_g = tl.zeros((GROUP_PAD,), tl.float32) + tl.sum(total * shrink, 0)
        acc_g = tl.sum(acc * shrink[:, None], 0)[None, :]
    else:
        top_g = tl.where(split == 0, new, float("-inf"))
        total_g = tl.where(split == 0, 1.0, 0.0) + tl.zeros((GROUP_PAD,), tl.float32)
        acc_g = tl.where(split == 0, value.to(tl.float32)[None, :], 0.0) + tl.zeros(
            (GROUP_PAD, HEAD_PAD), tl.float32
        )
        for begin in tl.range(start, end, BLOCK, num_stages=STAGES):
            inside = begin + t < end
            low, high, v = _block(
                keys, values, begin, end, t, d, whole, HEAD, half, in_half, in_whole
            )
            scores = tl.dot(q1, tl.trans(low)) + tl.dot(q2, tl.trans(high))
            scores = tl.where(inside[None, :], scores * scale, float("-inf"))
            # `begin` is inside, so the maximum is a number.
            higher = tl.maximum(top_g, tl.max(scores, 1))
            shrink = tl.exp2(top_g - higher)
            weights = tl.exp2(scores - higher[:, None])
            total_g = total_g * shrink + tl.sum(weights, 1)
            acc_g = tl.dot(weights.to(v.dtype), v, acc_g * shrink[:, None])
            top_g = higher

    if NEXT == 2:
        acc_g = let_next_start_after(acc_g)
    last = True
    out_mask = in_group[:, None] & in_whole[None, :]
    if SPLITS > 1 and busy > 1:
        size: tl.constexpr = GROUP_PAD * (HEAD_PAD + 2)
        at = g[:, None] * HEAD_PAD + whole[None, :]
        mine = partial + (tl.program_id(0) * SPLITS + split) * size
        tl.store(mine + at, acc_g, mask=out_mask)
        tl.store(mine + GROUP_PAD * HEAD_PAD + g, top_g)
        tl.store(mine + GROUP_PAD * (HEAD_PAD + 1) + g, total_g)
        tl.debug_barrier()
        last = tl.atomic_add(tickets + tl.program_id(0), 1, sem="acq_rel") == busy - 1
        if last:
            tl.store(tickets + tl.program_id(0), 0)
            top_g = tl.full((GROUP_PAD,), float("-inf"), tl.float32)
            total_g = tl.zeros_like(total_g)
            acc_g = tl.zeros_like(acc_g)
            for other in range(busy):
                theirs = partial + (tl.program_id(0) * SPLITS + other) * size
                their_top = tl.load(theirs + GROUP_PAD * HEAD_PAD + g, cache_modifier=".cg")
                their_total = tl.load(theirs + GROUP_PAD * (HEAD_PAD + 1) + g, cache_modifier=".cg")
                their_acc = tl.load(theirs + at, mask=out_mask, other=0.0, cache_modifier=".cg")
                higher = tl.maximum(top_g, their_top)
                mine_shrinks = tl.exp2(top_g - higher)
                theirs_shrinks = tl.exp2(their_top - higher)
                total_g = total_g * mine_shrinks + their_total * theirs_shrinks
                acc_g = acc_g * mine_shrinks[:, None] + their_acc * theirs_shrinks[:, None]
                top_g = higher
    if last:
        out_at = out + (tl.program_id(0) * GROUP + g)[:, None] * HEAD + whole[None, :]
        tl.store(out_at, (acc_g / total_g[:, None]).to(out.dtype.element_ty), mask=out_mask)


@triton.jit
def _block(
    keys, values, begin, end, t, d, whole, HEAD: tl.constexpr, half: tl.constexpr, in_half, in_whole
):
    """Keys, in halves, and values of the positions from `begin` on, 0 beyond `end`."""
    inside = begin + t < end
    at = (begin + t)[:, None] * HEAD
    mask = inside[:, None] & in_half[None, :]
    low = tl.load(keys + at + d[None, :], mask=mask, other=0.0)
    high = tl.load(keys + at + half + d[None, :], mask=mask, other=0.0)
    wide_mask = inside[:, None] & in_whole[None, :]
    v = tl.load(values + at + whole[None, :], mask=wide_mask, other=0.0)
    return low, high, v
