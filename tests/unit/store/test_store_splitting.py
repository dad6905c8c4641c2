"""Files are cut up without gaps and overlaps, within the limits of S3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.store.splitting import (
    LARGEST_PART_BYTES,
    LEAST_PART_BYTES,
    MOST_PARTS,
    FileTooLargeError,
    part_size,
    split,
)
from trtforge.store.transfer import PART_BYTES

TIB = 1 << 40


@given(st.integers(0, 10_000), st.integers(1, 500), st.data())
def test_pieces_cover_every_byte_once_and_only_the_last_is_shorter(
    size_bytes: int, piece_bytes: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, size_bytes))
    pieces = split(size_bytes, piece_bytes, start)
    covered = [offset for piece in pieces for offset in range(piece.offset, piece.end)]
    assert covered == list(range(start, size_bytes))
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    assert all(piece.length == piece_bytes for piece in pieces[:-1])
    assert all(piece.length > 0 for piece in pieces)


@given(st.integers(1, MOST_PARTS * LARGEST_PART_BYTES), st.integers(1, LARGEST_PART_BYTES))
def test_parts_are_within_the_limits_of_s3(size_bytes: int, wished_bytes: int) -> None:
    length = part_size(size_bytes, wished_bytes)
    assert LEAST_PART_BYTES <= length <= LARGEST_PART_BYTES
    assert -(-size_bytes // length) <= MOST_PARTS
    # The same for whoever goes on with it.
    assert length == part_size(size_bytes, wished_bytes)


@given(st.integers(1, MOST_PARTS * PART_BYTES))
def test_engines_of_usual_sizes_get_the_usual_parts(size_bytes: int) -> None:
    assert part_size(size_bytes, PART_BYTES) == PART_BYTES


def test_what_s3_cannot_hold_is_refused() -> None:
    with pytest.raises(FileTooLargeError, match="size_bytes"):
        part_size(MOST_PARTS * LARGEST_PART_BYTES + 1, PART_BYTES)
    assert part_size(MOST_PARTS * LARGEST_PART_BYTES, PART_BYTES) == LARGEST_PART_BYTES
    assert part_size(5 * TIB, PART_BYTES) > PART_BYTES
