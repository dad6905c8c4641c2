"""The tables of the report: the sweep, percentiles, and the engine before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtforge.benchmark.metrics import METRICS
from trtforge.benchmark.previous import Previous
from trtforge.benchmark.statistics import fewest
from trtforge.benchmark.summary import Point, Summary

NOT_ENOUGH = "n too small"
# Less than this is the rounding of sums.
_NOTHING = 1e-9
_RATE = "output_tokens_per_s"


@dataclass(frozen=True)
class Table:
    """A table of the page: header, rows of cells, and what is said below it.

    Attributes:
        labels: How many columns, from the left, say what a row is about.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    labels: int = 2

    def markdown(self) -> str:
        """Nothing but the note, where there is no row."""
        if not self.rows:
            return self.note
        lines = [
            f"| {' | '.join(self.header)} |",
            f"|{' --- |' * len(self.header)}",
            *(f"| {' | '.join(row)} |" for row in self.rows),
        ]
        return "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")


def sweep(summary: Summary, limits: Mapping[str, Any], *, brief: bool = False) -> Table:
    """Both sides at each concurrency; what counts most is first, for narrow windows.

    Args:
        brief: Without what can be computed from the rest.
    """
    terms = summary.terms
    columns = [
        ("TTFT ms", "ttft_s", 1e3),
        ("ITL ms", "itl_s", 1e3),
        ("Latency s", "request_latency_s", 1.0),
    ]
    if not brief:
        columns += [
            ("Tokens/s per user", "output_tokens_per_s_per_user", 1.0),
            ("Requests/s", "requests_per_s", 1.0),
        ]
    if terms.has_slo:
        columns.append(("Goodput/s", "goodput_per_s", 1.0))
    if terms.hourly_price:
        columns.append(("Cost per 10⁶", "cost_per_million_tokens", 1.0))
    titles = (title for title, _, _ in columns)
    header = ("Concurrency", "Side", "Output tokens/s", "× eager", "Of the limit", *titles)
    rows: list[tuple[str, ...]] = []
    for point in summary.points:
        first = (str(point.concurrency), point.who)
        if _RATE not in point.intervals:
            rows.append((*first, "nothing answered whole", *([""] * (len(header) - 3))))
            continue
        cells = [_with_interval(point, name, scale) for _, name, scale in columns]
        held = (_over_eager(summary, point), _of_limit(limits, point))
        rows.append((*first, _with_interval(point, _RATE), *held, *cells))
    rows.sort(key=lambda row: int(row[0]))
    note = "Means over the repeats, ± half the 95 % interval; one repeat has no interval."
    return Table(header, tuple(rows), note)


def percentiles(summary: Summary) -> Table:
    """How the times are spread, of each side at each concurrency."""
    rows = []
    for point in summary.points:
        for name in ("ttft_s", "itl_s", "itl_pooled_s", "request_latency_s"):
            spread = point.distributions.get(name)
            if spread is None:
                continue
            told = [
                NOT_ENOUGH if value is None else short(value * 1e3)
                for value in spread.percentiles.values()
            ]
            rows.append(
                (
                    str(point.concurrency), point.who, METRICS[name].title, str(spread.n),
                    short(spread.mean * 1e3), short(spread.std * 1e3), *told,
                )
            )  # fmt: skip
    rows.sort(key=lambda row: int(row[0]))
    header = ("Concurrency", "Side", "Metric, ms", "n", "mean", "std", "p50", "p90", "p95", "p99")
    note = (
        f"n counts requests; for the pooled ITL, gaps. “{NOT_ENOUGH}”: p99 needs {fewest(99)} of "
        "them (10 × concurrency, if that is more), p95 a fifth, p90 a tenth. Linear interpolation."
    )
    return Table(header, tuple(rows), note, labels=3)


def against(summary: Summary, previous: Previous | None) -> Table:
    """The engine beside the one before; nothing where there is none to compare with."""
    if previous is None or previous.why_not:
        return Table((), ())
    rows = []
    for old in previous.measurements:
        point = summary.find("engine", old.concurrency)
        if point is None or _RATE not in point.intervals:
            continue
        if (round(point.input_tokens), point.output_tokens) != (
            old.input_tokens,
            old.output_tokens,
        ):
            continue
        for name, scale in ((_RATE, 1.0), ("ttft_s", 1e3), ("itl_s", 1e3)):
            new, before = point.intervals[name].mean * scale, getattr(old, name) * scale
            unit = " ms" if scale != 1 else ""
            rows.append(
                (
                    str(old.concurrency), f"{METRICS[name].title}{unit}",
                    _with_interval(point, name, scale), short(before), f"{new / before - 1:+.1%}",
                )
            )  # fmt: skip
    note = (
        f"{previous.engine[:12]}, which {previous.alias} pointed to, measured when it was built; "
        "the performance gate compares the two by turns."
    )
    if not rows:
        note = f"Not comparable: {previous.engine[:12]} was measured with another workload."
    return Table(("Concurrency", "Metric", "This engine", "Before", "Change"), tuple(rows), note)


def limit_at(limits: Mapping[str, Any], concurrency: int) -> Mapping[str, Any] | None:
    """The hardware limit at a concurrency; None where it is not known."""
    points: Any = limits.get("points") or ()
    return next((p for p in points if p["concurrency"] == concurrency), None)


def short(value: float) -> str:
    """Three digits, or all of those before the point."""
    if abs(value) < _NOTHING:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _over_eager(summary: Summary, point: Point) -> str:
    eager = summary.find("eager", point.concurrency)
    if point.who != "engine" or eager is None or _RATE not in eager.intervals:
        return ""
    return f"{point.intervals[_RATE].mean / eager.intervals[_RATE].mean:.2f}"


def _of_limit(limits: Mapping[str, Any], point: Point) -> str:
    roof = limit_at(limits, point.concurrency)
    return f"{point.intervals[_RATE].mean / roof['output_tokens_per_s']:.1%}" if roof else ""


def _with_interval(point: Point, name: str, scale: float = 1.0) -> str:
    interval = point.intervals.get(name)
    if interval is None:
        return ""
    text = short(interval.mean * scale)
    return text if interval.n < 2 else f"{text} ± {short(interval.half * scale)}"
