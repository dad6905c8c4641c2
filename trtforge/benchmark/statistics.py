"""Mean, spread, percentiles and confidence intervals, and when a sample is too small for them.

Percentiles are interpolated linearly (as numpy and aiperf do), the standard deviation is that of
the values themselves (divided by n, likewise). Intervals are Student's t over repeats: repeats are
independent runs, requests within one are not.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

PERCENTILES = (50, 90, 95, 99)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval over `n` values; of one value the ends are infinite."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width: the ± of a report."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Distribution:
    """How values are spread.

    Attributes:
        percentiles: By its number; None where there are too few values to say.
    """

    n: int
    mean: float
    std: float
    minimum: float
    maximum: float
    percentiles: dict[int, float | None]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def confidence_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of the mean.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    # The exact sum: a fraction of equal values is no spread.
    spread = statistics.stdev(values) / math.sqrt(len(values))
    half = student_t(confidence, len(values) - 1) * spread
    return Interval(mean, mean - half, mean + half, len(values))


def distribution(values: Sequence[float], concurrency: int = 1) -> Distribution:
    """Describe values, which are of requests that ran `concurrency` at once.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("a distribution needs at least one value")
    ordered = sorted(values)
    return Distribution(
        n=len(ordered),
        mean=statistics.fmean(ordered),
        std=statistics.pstdev(ordered),
        minimum=ordered[0],
        maximum=ordered[-1],
        percentiles={
            p: percentile(ordered, p) if len(ordered) >= fewest(p, concurrency) else None
            for p in PERCENTILES
        },
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of values in rising order, by linear interpolation."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def fewest(percent: int, concurrency: int = 1) -> int:
    """How many requests justify a percentile: for p99 max(100, 10 × concurrency), p95 a fifth…

    At least one request must lie beyond it; and as requests of one batch share their fate, more
    are needed where many run at once.
    """
    return math.ceil(round(max(1.0, concurrency / 10) * 100 / (100 - percent), 9))


@lru_cache
def student_t(confidence: float, degrees: int) -> float:
    """The t that a Student-distributed value stays within, on both sides, with this probability."""
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(theta: float, degrees: int) -> float:
    """P(|t| <= sqrt(degrees) tan(theta)): Abramowitz and Stegun 26.7.3 and 26.7.4, exact."""
    sine, cosine = math.sin(theta), math.cos(theta)
    first = 1 if degrees % 2 == 0 else 2
    term = 1.0 if degrees % 2 == 0 else cosine
    total = 0.0
    for power in range(first, degrees, 2):
        total += term
        term *= cosine * cosine * power / (power + 1)
    if degrees % 2 == 0:
        return sine * total
    return (theta + sine * total) * 2 / math.pi
