"""Has an engine become slower than it was? Its own history is the judge."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trtforge.store.benchmarks import BenchedPoint, BenchmarkRecord

METRIC = "output_tokens_per_s"
_LOOKED_BACK = 5


@dataclass(frozen=True)
class Regression:
    """A metric that is worse than before beyond doubt: `now` with its interval, and `before`."""

    metric: str
    concurrency: int
    before: float
    now: float
    high: float
    allowed: float
    compared_with: int

    def __str__(self) -> str:
        return (
            f"{self.metric} at concurrency {self.concurrency} is {self.now:.1f}, at most "
            f"{self.high:.1f} with 95 % confidence; it was {self.before:.1f} (median of "
            f"{self.compared_with}), and {self.allowed:.0%} less are allowed"
        )


def comparable(new: BenchmarkRecord, old: BenchmarkRecord) -> bool:
    """Whether two benchmarks say something about each other."""
    return (new.device, new.workload, new.boundary) == (old.device, old.workload, old.boundary)


def find_regression(
    new: BenchmarkRecord, history: Sequence[BenchmarkRecord], allowed: float
) -> Regression | None:
    """The worst regression against the median of the last five comparable benchmarks.

    It counts only when the whole interval of the new measurement lies below what is allowed; one
    repeat has no interval, and finds none.

    Args:
        history: Those before, oldest first.
        allowed: Share by which it may be slower.
    """
    before = [record for record in history if comparable(new, record)][-_LOOKED_BACK:]
    found = []
    for point in new.points:
        past = [was for record in before if (was := _at(record, point)) is not None]
        value = point.values.get(METRIC)
        if not past or value is None or value.high is None:
            continue
        usual = statistics.median(past)
        if value.high < (1 - allowed) * usual:
            found.append(
                Regression(
                    METRIC, point.concurrency, usual, value.mean, value.high, allowed, len(past)
                )
            )
    return min(found, key=lambda r: r.now / r.before, default=None)


def _at(record: BenchmarkRecord, point: BenchedPoint) -> float | None:
    shape = (point.concurrency, point.input_tokens, point.output_tokens)
    for other in record.points:
        if (other.concurrency, other.input_tokens, other.output_tokens) == shape:
            value = other.values.get(METRIC)
            return value.mean if value else None
    return None
