"""Is a new engine slower than the one in use? Only what is beyond doubt counts.

Both engines run the same requests, in turns; each turn gives one ratio new / old per metric and
concurrency. Of the logarithms of these ratios a confidence interval is taken (Student's t), and an
engine fails only when an interval lies wholly on the bad side of the tolerance. With several
comparisons each interval is made wider (Bonferroni), so that all of them together raise a false
alarm no more often than one would: at most 2.5 % where the engine is slower by exactly the
tolerance, and next to never where it is as quick. `benchmarks/gate_power.py` shows both.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trtforge.benchmark.report import BOUNDARY
from trtforge.benchmark.statistics import confidence_interval
from trtforge.gates.timings import Repeats, Shape, value
from trtforge.spec import PerformanceGateSpec, PerformanceMetric

_CONFIDENCE = 0.95
_FEWEST = 3
_HIGHER_IS_BETTER = {"output_tokens_per_s"}

Status = Literal[
    "passed",
    "slower",
    "slower, only reported",
    "not comparable",
    "nothing to compare with",
    "the same engine",
    "not judged: the answers are wrong",
    "off",
]
Method = Literal["in turns", "recorded"]
_SAID: dict[Status, str] = {
    "the same engine": "its files are those of the engine in use",
    "off": "not asked for",
}


@dataclass(frozen=True)
class Setting:
    """What two measurements must have in common to be compared.

    Attributes:
        device: Name of the GPU, or model of the CPU.
        ranks: GPUs it runs on.
        boundary: What the times were taken around.
    """

    device: str
    ranks: int
    boundary: str = BOUNDARY


@dataclass(frozen=True)
class Difference:
    """Why two engines cannot be compared: a field, and both its values."""

    field: str
    new: str
    old: str

    def __str__(self) -> str:
        return f"{self.field} is {self.new!r}, and {self.old!r} of the engine in use"


@dataclass(frozen=True)
class Comparison:
    """One metric at one concurrency: the ratio new / old, and its confidence interval.

    Attributes:
        runs: Pairs of runs it is made of.
        passed: The interval does not lie wholly beyond the tolerance.
    """

    metric: PerformanceMetric
    concurrency: int
    ratio: float
    low: float
    high: float
    runs: int
    passed: bool

    def __str__(self) -> str:
        return (
            f"{self.metric} at concurrency {self.concurrency} is {self.ratio:.3f} times that of "
            f"the engine in use ({self.low:.3f} to {self.high:.3f})"
        )


@dataclass(frozen=True)
class PerformanceVerdict:
    """What the performance gate says.

    Attributes:
        alias: Which one points at the engine it was compared with, `against`.
        method: `in turns` where both ran now; `recorded` where the old one does not run here any
            more and what its benchmark left is taken, which a changed machine may falsify.
    """

    status: Status
    tolerance: float
    alias: str | None = None
    against: str | None = None
    method: Method | None = None
    comparisons: tuple[Comparison, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def passed(self) -> bool:
        return self.status != "slower"

    def describe(self) -> str:
        """One line for people."""
        if self.status in ("slower", "slower, only reported"):
            worst = next(c for c in self.comparisons if not c.passed)
            return f"{worst}; {self.tolerance:.0%} slower are allowed"
        if self.differences:
            return f"{self.status}: {self.differences[0]}"
        return _SAID.get(self.status, self.status)

    def to_json(self) -> dict[str, Any]:
        lists = {
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "differences": [asdict(difference) for difference in self.differences],
        }
        return {**asdict(self), **lists, "passed": self.passed}


def setting_differences(new: Setting, old: Setting) -> tuple[Difference, ...]:
    """The fields that forbid a comparison; empty when there is none."""
    mine, theirs = asdict(new), asdict(old)
    return tuple(
        Difference(name, str(mine[name]), str(theirs[name]))
        for name in mine
        if mine[name] != theirs[name]
    )


def shape_differences(new: Iterable[Shape], old: Iterable[Shape]) -> tuple[Difference, ...]:
    """The workload as what differs, where two measurements have no shape in common."""
    mine, theirs = sorted(new), sorted(old)
    if set(mine) & set(theirs):
        return ()
    return (Difference("workload", _shapes(mine), _shapes(theirs)),)


def compare_engines(
    new: Repeats, old: Repeats, gate: PerformanceGateSpec
) -> tuple[Comparison, ...]:
    """Compare what both did, shape by shape, repeat by repeat.

    A shape that one of them was not asked, or too seldom for an interval, is left out.
    """
    common = [
        shape for shape in sorted(new) if min(len(new[shape]), len(old.get(shape, ()))) >= _FEWEST
    ]
    count = len(common) * len(gate.metrics)
    return tuple(
        compare_metric(
            metric,
            shape.concurrency,
            [value(metric, requests) for requests in new[shape]],
            [value(metric, requests) for requests in old[shape]],
            tolerance=gate.tolerance,
            comparisons=count,
        )
        for shape in common
        for metric in gate.metrics
    )


def compare_metric(
    metric: PerformanceMetric,
    concurrency: int,
    new: Sequence[float],
    old: Sequence[float],
    *,
    tolerance: float,
    comparisons: int = 1,
) -> Comparison:
    """Compare one metric, `new[i]` with `old[i]`; `comparisons` are made in all."""
    logs = [math.log(mine / theirs) for mine, theirs in zip(new, old, strict=False)]
    interval = confidence_interval(logs, confidence=1 - (1 - _CONFIDENCE) / comparisons)
    ratio, low, high = (math.exp(x) for x in (interval.mean, interval.low, interval.high))
    worse = high < 1 - tolerance if metric in _HIGHER_IS_BETTER else low > 1 + tolerance
    return Comparison(metric, concurrency, ratio, low, high, len(logs), not worse)


def conclude(
    gate: PerformanceGateSpec,
    comparisons: tuple[Comparison, ...],
    *,
    alias: str,
    against: str,
    method: Method,
) -> PerformanceVerdict:
    """The verdict on comparisons that were made."""
    status: Status = "passed"
    if not comparisons:
        status = "not comparable"
    elif not all(comparison.passed for comparison in comparisons):
        status = "slower" if gate.mode == "enforce" else "slower, only reported"
    few = (Difference("repeats", f"fewer than {_FEWEST}", f"fewer than {_FEWEST}"),)
    return PerformanceVerdict(
        status, gate.tolerance, alias, against, method, comparisons, () if comparisons else few
    )


def told_verdict(told: Mapping[str, Any]) -> PerformanceVerdict:
    """A verdict as `to_json` gave it."""
    kept = {name: told[name] for name in told if name != "passed"}
    return PerformanceVerdict(
        **{
            **kept,
            "comparisons": tuple(Comparison(**c) for c in kept.get("comparisons", ())),
            "differences": tuple(Difference(**d) for d in kept.get("differences", ())),
        }
    )


def _shapes(shapes: Sequence[Shape]) -> str:
    return ", ".join(map(str, shapes))
