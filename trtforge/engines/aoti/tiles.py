"""How the kernels of a decode step are cut into programs, by shape. Pure arithmetic.

Each kernel reads a weight once, so what counts is that enough of it is on its way at any moment, on
all multiprocessors to the end. `docs/gpu-notes.md` says what these numbers were derived from.
"""

from dataclasses import dataclass

MATRIX_ROWS = 64
"""Batches up to here run in the kernels of a step; above, a matrix library is the better choice."""

_PROGRAMS = 264  # two for each of an H100's or H200's 132 multiprocessors
_SHARED_BYTES = 96 << 10  # so that two programs fit into one multiprocessor
# What memory delivers in the 3 µs between the end of one kernel's reads and the next one's.
_AHEAD_BYTES = 12 << 20


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

    def tiles(self, columns: int) -> int:
        return -(-columns // self.block_n)

    def partial_size(self, columns: int) -> int:
        """fp32 numbers of scratch memory; 1 where the sums of one program are whole."""
        if self.split == 1:
            return 1
        per_program = 2 * self.block_m * self.block_n + self.block_m
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

    def partial_size(self, sequences: int, kv_heads: int) -> int:
        """fp32 numbers of scratch memory."""
        if self.splits == 1:
            return 1
        return sequences * kv_heads * self.splits * self.group_pad * (self.head_pad + 2)


def linear_tile(rows: int, n: int, k: int, *, gated: bool, item_bytes: int = 2) -> LinearTile:
    """For `rows` (at most MATRIX_ROWS) times a weight (n, k), or two of them (`gated`).

    One row is multiplied without matrix units, straight from memory to registers: 64 numbers of a
    weight on their way to each thread. More go through shared memory, a few tiles ahead.
    """
    weights = 2 if gated else 1
    if rows == 1:
        block_k = min(512, power_of_two(k))
        block_n = 8 if gated or n <= 8192 else 16
        return LinearTile(1, block_n, block_k, 1, 1, 4, dot=False)
    block_m = max(16, power_of_two(rows))
    block_n = 32 if gated else 64
    block_k = min(128, max(16, power_of_two(k)))
    stage_bytes = (weights * block_n + block_m) * block_k * item_bytes
    stages = max(2, min(4, _SHARED_BYTES // stage_bytes))
    programs = -(-n // block_n)
    split = max(1, min(4, _PROGRAMS // programs, k // (block_k * stages)))
    return LinearTile(block_m, block_n, block_k, split, stages, 4, dot=True)


def attention_tile(
    sequences: int, kv_heads: int, group: int, head: int, length: int
) -> AttentionTile:
    """For `sequences` × `kv_heads` caches of up to `length` positions, `group` queries on each."""
    caches = sequences * kv_heads
    few = caches < _PROGRAMS
    least = 128 if few else 512
    # A program without work ends at once, so that a batch padded to this size, or one whose
    # sequences differ in length, may have more of them than it needs.
    splits = max(2 * _PROGRAMS // caches, 4)
    splits = min(power_of_two(splits), 32, max(1, length // least))
    if caches > 8 * _PROGRAMS:
        splits = 1
    return AttentionTile(
        group_pad=1 if group == 1 else max(16, power_of_two(group)),
        head_pad=max(32, power_of_two(head)),
        block=32 if group == 1 else 64,
        splits=splits,
        least=least,
        stages=2,
        warps=4,
    )


def ahead_bytes(rows: int, row_bytes: int) -> int:
    """Of each of the `rows` that the next kernel reads, how much to ask for; 0: not possible."""
    if row_bytes % 16:
        return 0
    share = _AHEAD_BYTES // rows
    return min(row_bytes, max(16, power_of_two(share + 1) // 2))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
