"""Tiles: every number read once, and delivered to each rank in the order of its own block."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trtforge.checkpoint.plan import Block
from trtforge.checkpoint.safetensors_io import StoredTensor
from trtforge.checkpoint.tiling import tiles


@st.composite
def groups(draw: st.DrawFn) -> tuple[np.ndarray, list[Block]]:
    """A matrix of distinct numbers, and what the ranks of a group need of it."""
    rows, columns, tp = (draw(st.integers(1, 12)) for _ in range(3))
    stored = StoredTensor(Path("x"), "x", "F32", (rows, columns), 0, rows * columns * 4)
    kind = draw(st.sampled_from(["all", "rows", "columns", "shared rows"]))
    blocks = []
    for rank in range(tp):
        r, c = (0, rows), (0, columns)
        if kind == "rows":
            each = -(-rows // tp)
            r = (min(rows, rank * each), min(rows, (rank + 1) * each))
        elif kind == "columns":
            c = (rank * columns // tp, max((rank + 1) * columns // tp, rank * columns // tp + 1))
        elif kind == "shared rows":
            head = rank // 2 % rows
            r = (head, head + 1)
        blocks.append(Block(stored, *r, *c))
    return np.arange(rows * columns).reshape(rows, columns), blocks


@given(group=groups(), most_numbers=st.integers(1, 60))
def test_every_rank_gets_its_block_row_by_row(
    group: tuple[np.ndarray, list[Block]], most_numbers: int
) -> None:
    matrix, blocks = group
    delivered: list[list[int]] = [[] for _ in blocks]
    reads: list[int] = []
    for tile in tiles(blocks, most_numbers):
        assert tile.numbers <= most_numbers
        numbers = matrix.reshape(-1)[tile.first : tile.first + tile.numbers]
        reads += numbers.tolist()
        for part in tile.parts:
            columns = numbers.reshape(tile.rows, tile.row_numbers)[:, part.start : part.stop]
            delivered[part.rank] += columns.reshape(-1).tolist()
    for block, got in zip(blocks, delivered, strict=True):
        rows = slice(block.row_start, block.row_stop)
        columns = slice(block.column_start, block.column_stop)
        assert got == matrix[rows, columns].reshape(-1).tolist()
    needed = {number for got in delivered for number in got}
    if all(block.column_stop - block.column_start == matrix.shape[1] for block in blocks):
        assert sorted(reads) == sorted(needed)
