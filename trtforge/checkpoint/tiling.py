"""How a stored tensor is read: once, front to back in tiles, each handed to the ranks it is for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from trtforge.checkpoint.plan import Block


@dataclass(frozen=True)
class Part:
    """Columns `start` to `stop` of a tile, for the rank at position `rank` of the group."""

    rank: int
    start: int
    stop: int


@dataclass(frozen=True)
class Tile:
    """`rows` × `row_numbers` numbers that lie together in the file, from number `first` on."""

    first: int
    rows: int
    row_numbers: int
    parts: tuple[Part, ...]

    @property
    def numbers(self) -> int:
        return self.rows * self.row_numbers

    @property
    def is_whole(self) -> bool:
        """Whether a single rank takes all of it."""
        return len(self.parts) == 1 and self.parts[0].stop == self.row_numbers


def tiles(blocks: Sequence[Block], most_numbers: int) -> Iterator[Tile]:
    """Tiles that together give every rank its block of one stored tensor.

    Each number of the tensor that any rank needs is read once. Every rank gets its numbers in the
    order of its own block, row by row. Ranks with different rows take turns, so that their files
    are hashed side by side.

    Args:
        blocks: What each rank of the group needs, all of the same tensor.
        most_numbers: Most numbers in a tile.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for rank, block in enumerate(blocks):
        groups.setdefault((block.row_start, block.row_stop), []).append(rank)
    streams = [_tiles_of_rows(blocks, ranks, most_numbers) for ranks in groups.values()]
    for turn in zip_longest(*streams):
        yield from (tile for tile in turn if tile is not None)


def _tiles_of_rows(
    blocks: Sequence[Block], ranks: Sequence[int], most_numbers: int
) -> Iterator[Tile]:
    """The tiles for ranks that need the same rows."""
    first = blocks[ranks[0]]
    row_numbers = first.row_numbers
    if all(blocks[rank].has_whole_rows for rank in ranks):
        start, stop = first.row_start * row_numbers, first.row_stop * row_numbers
        yield from _run(start, stop, ranks, most_numbers)
        return
    if row_numbers > most_numbers:
        for row in range(first.row_start, first.row_stop):
            for rank in ranks:
                start = row * row_numbers + blocks[rank].column_start
                stop = row * row_numbers + blocks[rank].column_stop
                yield from _run(start, stop, [rank], most_numbers)
        return
    parts = tuple(Part(rank, blocks[rank].column_start, blocks[rank].column_stop) for rank in ranks)
    height = most_numbers // row_numbers
    for row in range(first.row_start, first.row_stop, height):
        rows = min(height, first.row_stop - row)
        yield Tile(row * row_numbers, rows, row_numbers, parts)


def _run(start: int, stop: int, ranks: Sequence[int], most_numbers: int) -> Iterator[Tile]:
    """Tiles of one row each for numbers that lie together."""
    for first in range(start, stop, most_numbers):
        count = min(most_numbers, stop - first)
        yield Tile(first, 1, count, tuple(Part(rank, 0, count) for rank in ranks))
