"""How the kernels of a decode step are cut, for every shape a model may have."""

from hypothesis import given
from hypothesis import strategies as st

from trtforge.engines.aoti.tiles import (
    MATRIX_ROWS,
    attention_tile,
    linear_tile,
    power_of_two,
)

ROWS = st.integers(1, MATRIX_ROWS)
COLUMNS = st.integers(16, 262_144)
# Two programs on one multiprocessor of an H100, with what the hardware keeps for itself.
SHARED_BYTES_PER_PROGRAM = (228 << 10) // 2 - 1024
TICKETS = 1 << 13


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


class TestLinear:
    @given(ROWS, COLUMNS, st.integers(16, 65_536), st.booleans())
    def test_tiles_cover_every_row_and_column(self, rows: int, n: int, k: int, gated: bool) -> None:
        tile = linear_tile(rows, n, k, gated=gated)
        assert tile.block_m >= rows
        assert tile.tiles(n) * tile.block_n >= n
        assert (tile.tiles(n) - 1) * tile.block_n < n
        sizes = (tile.block_m, tile.block_n, tile.block_k, tile.warps)
        assert all(is_power_of_two(size) for size in sizes)

    @given(ROWS, COLUMNS, st.integers(16, 65_536), st.booleans())
    def test_two_programs_find_room_on_one_multiprocessor_where_there_are_so_many(
        self, rows: int, n: int, k: int, gated: bool
    ) -> None:
        tile = linear_tile(rows, n, k, gated=gated)
        weights = 2 if gated else 1
        if tile.dot:
            stage = (weights * tile.block_n + tile.block_m) * tile.block_k * 2
            alone = tile.tiles(n) * tile.split <= 132
            assert stage * tile.stages <= SHARED_BYTES_PER_PROGRAM * (2 if alone else 1)
        else:  # fp32 sums in registers, of 255 a thread
            assert weights * tile.block_n * tile.block_k // (32 * tile.warps) <= 128

    @given(ROWS, COLUMNS, st.integers(16, 65_536), st.booleans())
    def test_what_programs_share_has_tickets_and_scratch(
        self, rows: int, n: int, k: int, gated: bool
    ) -> None:
        tile = linear_tile(rows, n, k, gated=gated)
        if tile.split == 1:
            assert tile.partial_size(n) == 1
        else:
            assert tile.tiles(n) <= TICKETS
            sums = tile.tiles(n) * tile.split * tile.block_m * tile.block_n
            assert tile.partial_size(n) >= 2 * sums
            # Every part has something to add up.
            assert tile.block_k * tile.split <= k + tile.block_k

    def test_one_row_is_multiplied_without_matrix_units_and_more_with(self) -> None:
        assert not linear_tile(1, 4096, 4096, gated=False).dot
        assert linear_tile(2, 4096, 4096, gated=False).dot

    def test_the_products_of_a_7b_model_keep_every_multiprocessor_busy(self) -> None:
        for rows in (1, 8, 32):
            for n, k, gated in (
                (12288, 4096, False),
                (4096, 4096, False),
                (11008, 4096, True),
                (4096, 11008, False),
                (32000, 4096, False),
            ):
                tile = linear_tile(rows, n, k, gated=gated)
                assert tile.tiles(n) * tile.split >= 128


class TestAttention:
    @given(
        st.integers(1, 512),
        st.integers(1, 64),
        st.integers(1, 32),
        st.integers(8, 256),
        st.integers(2, 131_072),
    )
    def test_programs_cover_a_cache_and_its_heads(
        self, sequences: int, kv_heads: int, group: int, head: int, length: int
    ) -> None:
        tile = attention_tile(sequences, kv_heads, group, head, length)
        assert tile.head_pad >= head
        assert tile.group_pad >= group
        assert is_power_of_two(tile.head_pad)
        assert is_power_of_two(tile.group_pad)
        # A program's first position is a block's first.
        assert tile.least % tile.block == 0
        assert tile.splits >= 1
        if tile.splits > 1:
            assert sequences * kv_heads <= TICKETS
            sums = sequences * kv_heads * tile.splits * tile.group_pad * tile.head_pad
            assert tile.partial_size(sequences, kv_heads) > sums

    def test_a_single_sequence_is_shared_out_among_many(self) -> None:
        assert attention_tile(1, 8, 4, 128, 4096).splits == 16
        assert attention_tile(1, 8, 4, 128, 1 << 17).splits == 32
        assert attention_tile(128, 32, 1, 128, 4096).splits == 1


@given(st.integers(1, 1 << 40))
def test_power_of_two(number: int) -> None:
    power = power_of_two(number)
    assert is_power_of_two(power)
    assert number <= power < 2 * number
