"""A regression is called one only beyond doubt, and only against what can be compared."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from trtforge.benchmark.regression import find_regression
from trtforge.benchmark.trend import trend
from trtforge.store.benchmarks import BenchedPoint, BenchedValue, BenchmarkRecord


def record(
    rate: float, half: float | None = 1.0, *, day: int = 0, **differs: Any
) -> BenchmarkRecord:
    low, high = (None, None) if half is None else (rate - half, rate + half)
    value = BenchedValue(mean=rate, low=low, high=high, n=1 if half is None else 3)
    point = BenchedPoint(
        concurrency=4, input_tokens=128, output_tokens=32, values={"output_tokens_per_s": value}
    )
    usual: dict[str, Any] = {
        "engine_id": "5d" * 32,
        "run_id": f"bench-{day}",
        "device": "NVIDIA H100",
        "workload": "smoke",
        "boundary": "in process",
        "points": (point,),
        "machine": {},
        "by": "test",
        "at": datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=day),
    }
    return BenchmarkRecord(**{**usual, **differs})


HISTORY = [record(100 + wobble, day=n) for n, wobble in enumerate((0, 1, -1, 2, 0))]


def test_slower_beyond_doubt_is_a_regression() -> None:
    found = find_regression(record(90, 1), HISTORY, 0.05)
    assert found is not None
    assert (found.before, found.now, found.compared_with) == (100, 90, 5)
    assert "5% less are allowed" in str(found)


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (record(96), "within what is allowed"),
        (record(90, 6), "its interval reaches what is allowed"),
        (record(90, None), "one repeat proves nothing"),
        (record(130), "quicker"),
        (record(50, device="NVIDIA H200"), "another device"),
        (record(50, workload="chat"), "another workload"),
        (record(50, boundary="HTTP"), "another boundary"),
    ],
)
def test_anything_else_is_none(new: BenchmarkRecord, why: str) -> None:
    assert find_regression(new, HISTORY, 0.05) is None, why


def test_without_a_history_there_is_none() -> None:
    assert find_regression(record(1), [], 0.05) is None


def test_only_the_last_five_count() -> None:
    long_ago = [record(500, day=-n) for n in range(1, 9)]
    assert find_regression(record(99), [*reversed(long_ago), *HISTORY], 0.05) is None


def test_the_trend_is_drawn_of_what_can_be_compared() -> None:
    new = record(90, day=9)
    history = [record(7, workload="chat"), *HISTORY, new]
    text = trend(history, find_regression(new, history[:-1], 0.05))
    assert "**Regression: output_tokens_per_s at concurrency 4 is 90.0" in text
    assert "data:image/svg+xml" in text
    assert "| 2026-11-10 00:00 | 90.0 ± 1 at 4 | `bench-9` |" in text
    assert "1 with another workload or device are left out." in text
