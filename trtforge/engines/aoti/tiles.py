"""How the kernels of a decode step are cut into programs, by shape. Pure arithmetic.

Each kernel reads a weight once, so what counts is that enough of it is on its way at any moment, on
all multiprocessors to the end. `docs/gpu-notes.md` says what these numbers were derived from.
"""

from dataclasses import dataclass

MATRIX_ROWS = 64
"""Batches up to here run in the kernels of a step; above, a matrix library is the better choice."""

_MULTIPROCESSORS = 132  # of an H100 or H200
_SHARED_BYTES = 112 << 10  # so that two programs fit into one multiprocessor
_SHARED_BYTES_ALONE = 190 << 10


@dataclass(frozen=True)
class LinearTile:
    """How a product of few rows with a weight (N, K) is cut; see `kernels.rows_times_weights`."""

    block_m: int
    block_n: int
    block_k: int
    split: int
    stages: int
    warps: int
    dot: bool
    lets_next: int = 2
    ahead: int = 0

    def tiles(self, columns: int) -> int:
        return -(-columns // self.block_n)

    def partial_size(self, columns: int) -> int:
        """fp32 numbers of scratch memory; 1 where the sums of one program are whole."""
        if self.split == 1:
            return 1
        per_program = 2 * self.block_m * self.block_n
        return self.tiles(columns) * self.split * per_program


@dataclass(frozen=True)
class AttentionTile:
    """How attention of one token is cut; see `attention_kernel.attend_to_cache`."""

    group_pad: int
    head_pad: int
    block: int
    splits: int
    least: int
    stages: int
    warps: int
    lets_next: int = 2

    def partial_size(self, sequences: int, kv_heads: int) -> int:
        """fp32 numbers of scratch memory."""
        if self.splits == 1:
            return 1
        return sequences * kv_heads * self.splits * self.group_pad * (self.head_pad + 2)


def linear_tile(rows: int, n: int, k: int, *, gated: bool, item_bytes: int = 2) -> LinearTile:
    """For `rows` (at most MATRIX_ROWS) times a weight (n, k), or two of them (`gated`).

    One row is multiplied without matrix units: 64 numbers of a weight on their way to each thread,
    three times. More rows go through them, 64 columns at a time, a few tiles ahead.

    Small programs let those of the next kernel start at once. Large ones would be put two and two
    on the multiprocessors that are ready first, so they do so at their end.
    """
    weights = 2 if gated else 1
    if rows == 1:
        block_n, block_k = (4, 1024) if gated else (8 if n < 16384 else 16, 512)
        block_k = min(block_k, power_of_two(k))
        ahead = 2 if k > n else 1
        return LinearTile(1, block_n, block_k, 1, 3, 4, dot=False, lets_next=1, ahead=ahead)
    block_m, block_n = max(16, power_of_two(rows)), 64
    block_k = min(64 if gated and block_m > 16 else 128, max(16, power_of_two(k)))
    tiles = -(-n // block_n)
    split = max(1, min(4, _MULTIPROCESSORS // tiles, k // (4 * block_k)))
    alone = tiles * split <= _MULTIPROCESSORS
    stage_bytes = (weights * block_n + block_m) * block_k * item_bytes
    shared_bytes = _SHARED_BYTES_ALONE if alone else _SHARED_BYTES
    stages = max(2, min(5 if alone else 4, shared_bytes // stage_bytes))
    return LinearTile(block_m, block_n, block_k, split, stages, 4, dot=True)


def attention_tile(
    sequences: int, kv_heads: int, group: int, head: int, length: int
) -> AttentionTile:
    """For `sequences` × `kv_heads` caches of up to `length` positions, `group` queries on each."""
    caches = sequences * kv_heads
    few, many = caches < _MULTIPROCESSORS, caches > 4 * _MULTIPROCESSORS
    single = group == 1
    least = 32 if few and single else 64 if few else 512
    # A program without work ends at once, so that there may be more of them than are needed.
    wanted = length // 256 if few else 4 * _MULTIPROCESSORS // caches
    splits = min(32, power_of_two(wanted + 1) // 2, power_of_two(length // least + 1) // 2)
    return AttentionTile(
        group_pad=1 if single else max(16, power_of_two(group)),
        head_pad=max(32, power_of_two(head)),
        block=(16 if many else 32) if single else 64,
        splits=max(1, splits),
        least=least,
        stages=1 if single and (few or many) else 3,
        warps=2 if single and (few or many) else 4,
        lets_next=1 if few or many else 2,
    )


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
