"""The summary of a benchmark, computed from its raw data alone: anybody can do it again."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtforge.benchmark.metrics import REQUEST_METRICS, RUN_METRICS, Terms
from trtforge.benchmark.sample import Sample, of_cell
from trtforge.benchmark.statistics import (
    Distribution,
    Interval,
    confidence_interval,
    distribution,
)


@dataclass(frozen=True)
class Point:
    """One side at one concurrency.

    Attributes:
        requests: How many were sent, over all repeats, and how they ended (`counts`).
        distributions: Of each request metric, over the requests that gave every token.
        intervals: Of each metric, over the repeats: of its mean in a repeat, or its value.
    """

    who: str
    concurrency: int
    repeats: int
    requests: int
    counts: dict[str, int]
    input_tokens: float
    output_tokens: int
    distributions: dict[str, Distribution]
    intervals: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """JSON; the ends of an interval that a single repeat leaves open are None."""
        told = asdict(self)
        for interval in told["intervals"].values():
            for end in ("low", "high"):
                if math.isinf(interval[end]):
                    interval[end] = None
        for spread in told["distributions"].values():
            spread["percentiles"] = {f"p{p}": v for p, v in spread["percentiles"].items()}
        return told


@dataclass(frozen=True)
class Summary:
    """All points, the engine's and its baseline's, by rising concurrency."""

    terms: Terms
    points: tuple[Point, ...]

    def of(self, who: str) -> tuple[Point, ...]:
        """The points of one side."""
        return tuple(point for point in self.points if point.who == who)

    def find(self, who: str, concurrency: int) -> Point | None:
        """One side at one concurrency; None where it was not measured."""
        return next((p for p in self.of(who) if p.concurrency == concurrency), None)

    def to_json(self) -> dict[str, Any]:
        return {"terms": asdict(self.terms), "points": [point.to_json() for point in self.points]}


def summarise(samples: Sequence[Sample], terms: Terms | None = None) -> Summary:
    """Compute everything from the raw data."""
    terms = terms or Terms()
    sides = dict.fromkeys(sample.who for sample in samples)
    return Summary(
        terms,
        tuple(
            _point(who, concurrency, of_cell(samples, who, concurrency), terms)
            for who in sides
            for concurrency in sorted({s.concurrency for s in samples if s.who == who})
        ),
    )


def _point(who: str, concurrency: int, repeats: Sequence[Sequence[Sample]], terms: Terms) -> Point:
    everything = [sample for run in repeats for sample in run]
    counted = [tuple(s for s in run if s.status == "ok" and s.token_s) for run in repeats]
    counted = [run for run in counted if run]
    distributions: dict[str, Distribution] = {}
    intervals: dict[str, Interval] = {}
    for metric in REQUEST_METRICS:
        runs = [[value for s in run for value in metric.of(s)] for run in counted]
        runs = [run for run in runs if run]
        if runs:
            flat = [value for run in runs for value in run]
            distributions[metric.name] = distribution(flat, concurrency)
            intervals[metric.name] = confidence_interval([statistics.fmean(run) for run in runs])
    for rate in RUN_METRICS:
        values = [rate.of(run, terms) for run in counted]
        known = [value for value in values if value is not None]
        if known:
            intervals[rate.name] = confidence_interval(known)
    statuses = [sample.status for sample in everything]
    return Point(
        who=who,
        concurrency=concurrency,
        repeats=len(repeats),
        requests=len(everything),
        counts={s: statuses.count(s) for s in ("ok", "short", "failed", "timed-out")},
        input_tokens=statistics.fmean(sample.input_tokens for sample in everything),
        output_tokens=everything[0].output_tokens,
        distributions=distributions,
        intervals=intervals,
    )
