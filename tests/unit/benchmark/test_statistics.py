"""Means, spreads and intervals; n too small is said, not passed over."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.benchmark.statistics import (
    PERCENTILES,
    confidence_interval,
    distribution,
    fewest,
    student_t,
)


@pytest.mark.parametrize(
    ("degrees", "t95", "t99"),
    # From a printed table of Student's t, two-sided.
    [(1, 12.706, 63.657), (2, 4.303, 9.925), (3, 3.182, 5.841), (4, 2.776, 4.604),
     (9, 2.262, 3.250), (10, 2.228, 3.169), (30, 2.042, 2.750), (120, 1.980, 2.617)],
)  # fmt: skip
def test_student_t_is_that_of_the_tables(degrees: int, t95: float, t99: float) -> None:
    assert student_t(0.95, degrees) == pytest.approx(t95, abs=6e-4)
    assert student_t(0.99, degrees) == pytest.approx(t99, abs=6e-4)


class TestInterval:
    def test_of_three_values(self) -> None:
        found = confidence_interval([9.0, 10.0, 11.0])
        assert (found.mean, found.n) == (10.0, 3)
        assert found.half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
        assert found.high - found.mean == pytest.approx(found.mean - found.low)

    def test_of_one_value_nothing_is_known(self) -> None:
        found = confidence_interval([7.0])
        assert (found.mean, found.low, found.high) == (7.0, -math.inf, math.inf)

    def test_of_equal_values_it_has_no_width(self) -> None:
        assert confidence_interval([0.1] * 5).half == pytest.approx(0, abs=1e-15)

    def test_of_none_there_is_none(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            confidence_interval([])

    @pytest.mark.parametrize("n", [3, 5])
    def test_it_holds_the_truth_as_often_as_it_says(self, n: int) -> None:
        source = random.Random(1)
        tries = 4000
        held = 0
        for _ in range(tries):
            found = confidence_interval([source.gauss(10, 2) for _ in range(n)])
            held += found.low <= 10 <= found.high
        assert held / tries == pytest.approx(0.95, abs=0.015)


class TestDistribution:
    @given(st.lists(st.floats(-1e6, 1e6), min_size=100, max_size=300))
    def test_it_is_what_numpy_says(self, values: list[float]) -> None:
        found = distribution(values)
        assert found.std == pytest.approx(float(np.std(values)), rel=1e-9, abs=1e-6)
        for percent in PERCENTILES:
            expected = float(np.percentile(values, percent))
            assert found.percentiles[percent] == pytest.approx(expected, rel=1e-9, abs=1e-6)

    @pytest.mark.parametrize(
        ("n", "concurrency", "told"),
        [(3, 1, {50}), (10, 1, {50, 90}), (20, 4, {50, 90, 95}), (99, 1, {50, 90, 95}),
         (100, 8, {50, 90, 95, 99}), (639, 64, {50, 90, 95}), (640, 64, {50, 90, 95, 99})],
    )  # fmt: skip
    def test_percentiles_need_enough_requests(
        self, n: int, concurrency: int, told: set[int]
    ) -> None:
        found = distribution([float(v) for v in range(n)], concurrency)
        assert {p for p, value in found.percentiles.items() if value is not None} == told

    def test_p99_needs_a_hundred_or_ten_for_each_user(self) -> None:
        assert [fewest(99, c) for c in (1, 10, 11, 64)] == [100, 100, 110, 640]
