"""The report for people: one self-contained HTML page, and its short form in markdown.

The page needs nothing but itself: no host, no script, no font. It follows the reader's light or
dark setting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from trtforge.benchmark.metrics import METRICS, POOLED_ITL, TTFT, Measurement
from trtforge.benchmark.plots import Line, plot, share_below
from trtforge.benchmark.report import BenchmarkReport
from trtforge.benchmark.sample import Sample
from trtforge.benchmark.statistics import fewest
from trtforge.benchmark.summary import Point, Summary

NOT_ENOUGH = "n too small"
_MOST_CURVES = 4
_FAR = 10
# Less than this is the rounding of sums.
_NOTHING = 1e-9
_ENGINE, _EAGER, _LIMIT, _PREVIOUS = 0, 1, 2, 3


@dataclass(frozen=True)
class Previous:
    """The engine that an alias pointed to before; `why_not` says why it cannot be compared."""

    engine: str
    alias: str
    measurements: tuple[Measurement, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page: header, rows of cells, and what is said below it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def render(
    report: BenchmarkReport,
    samples: Sequence[Sample],
    *,
    title: str,
    card: Sequence[tuple[str, str]],
    previous: Previous | None = None,
) -> str:
    """The page.

    Args:
        samples: The raw data that the report's summary is of.
        card: What is known of the engine, name and value.
    """
    summary, _ = report.again(samples)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trtforge.benchmark", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        headline=headline(summary, report.limits),
        card=card,
        facts=_conditions(report, summary),
        curve=_curve(summary, report.limits, previous),
        ttft=_spread(samples, TTFT.name, "Time to first token"),
        itl=_spread(samples, POOLED_ITL.name, "Time between tokens"),
        sweep=_sweep(summary, report.limits),
        percentiles=_percentiles(summary),
        against=_against(summary, previous),
        previous=previous,
        machine=_machine(report),
        formulas=[(m.title, m.name, m.unit, m.formula, m.aiperf) for m in METRICS.values()],
        limit_formulas=_of(report.limits, "formulas"),
    )


def markdown(
    report: BenchmarkReport, summary: Summary, *, title: str, previous: Previous | None = None
) -> str:
    """The short form: the sweep, how it was measured, and against what."""
    parts = [
        f"# {title}",
        *([f"**{text}**"] if (text := headline(summary, report.limits)) else []),
        _markdown(_sweep(summary, report.limits)),
        _markdown(_percentiles(summary)),
        *([_markdown(_against(summary, previous))] if previous else []),
        "\n".join(f"- {name}: {value}" for name, value in _conditions(report, summary)),
        "; ".join(f"`{m.name}` = {m.formula}" for m in METRICS.values()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def headline(summary: Summary, limits: Mapping[str, Any]) -> str:
    """The best throughput in one line, and what to hold it against."""
    best = max(
        (p for p in summary.of("engine") if "output_tokens_per_s" in p.intervals),
        key=lambda p: p.intervals["output_tokens_per_s"].mean,
        default=None,
    )
    if best is None:
        return ""
    rate = best.intervals["output_tokens_per_s"].mean
    text = f"{_short(rate)} output tokens/s at concurrency {best.concurrency}"
    eager = summary.find("eager", best.concurrency)
    if eager and "output_tokens_per_s" in eager.intervals:
        text += f", {rate / eager.intervals['output_tokens_per_s'].mean:.2f}× eager PyTorch"
    roof = _limit(limits, best.concurrency)
    if roof:
        text += f", {rate / roof['output_tokens_per_s']:.0%} of the hardware limit"
    return text


def _conditions(report: BenchmarkReport, summary: Summary) -> list[tuple[str, str]]:
    """How it was measured: without this no number means anything."""
    load: Mapping[str, Any] = report.workload
    rows = []
    if load:
        lengths = f"{load['input_tokens'] or 'the prompts’ own'} in, {load['output_tokens']} out"
        rows += [
            ("Workload", f"{load['label']}: {lengths}, tokens exact, end of sequence ignored"),
            ("Loop", f"closed, {load['sampling']}, seed {load['seed']}"),
            (
                "Runs",
                f"{load['repeats']} repeats, {load['warmups']} warm-up batches thrown away at each "
                "concurrency",
            ),
        ]
    lost = sum(p.requests - p.counts["ok"] for p in summary.points)
    sent = sum(p.requests for p in summary.points)
    counted = {name: sum(p.counts[name] for p in summary.points) for name in _LOST}
    told = ", ".join(f"{count} {name}" for name, count in counted.items())
    rows += [
        *([("Order", report.order)] if report.order else []),
        *([("Boundary", report.boundary)] if report.boundary else []),
        ("Requests", f"{sent} sent, {sent - lost} answered whole; {told}"),
        ("± and intervals", "95 %, Student's t over the repeats"),
    ]
    if summary.terms.has_slo:
        terms = summary.terms
        asked = [
            f"{name} {value * 1e3:g} ms"
            for name, value in (("TTFT", terms.ttft_s), ("ITL", terms.itl_s))
            if value
        ]
        rows.append(("SLO", " and ".join(asked)))
    if summary.terms.hourly_price:
        rows.append(("Price", f"{summary.terms.hourly_price:g} an hour"))
    return rows


_LOST = ("short", "failed", "timed-out")


def _machine(report: BenchmarkReport) -> list[tuple[str, str]]:
    rows = [(name.replace("_", " "), str(v)) for name, v in report.machine.items() if v]
    loads = report.load_s or (report.engine_load_s,)
    rows.append(("engine load", ", ".join(f"{s:.2f} s" for s in loads)))
    rows.append(("engine peak host memory", _gigabytes(report.engine_peak_rss_bytes)))
    if report.eager:
        rows.append(("eager load", f"{report.eager_load_s:.2f} s"))
        rows.append(("eager peak host memory", _gigabytes(report.eager_peak_rss_bytes)))
        rows += [(f"eager {name}", version) for name, version in report.eager_versions.items()]
    rates = _of(report.limits, "rates")
    if rates:
        rows.append(("copy bandwidth, measured", f"{rates['copy_bytes_per_s'] / 1e9:,.1f} GB/s"))
        rate = rates["matmul_flops_per_s"]
        rows.append(("bf16 matrix products, measured", f"{rate / 1e12:,.2f} TFLOP/s"))
    for number, gpu in enumerate(report.gpus):
        for name, value in gpu.items():
            if value is not None:
                told = f"{value:,.0f}" if isinstance(value, float) else str(value)
                rows.append((f"GPU {number} {name.replace('_', ' ')}", told))
    return rows


def _sweep(summary: Summary, limits: Mapping[str, Any]) -> Table:
    terms = summary.terms
    header = (
        "Concurrency", "Side", "Output tokens/s", "Tokens/s per user", "TTFT ms", "ITL ms",
        "Latency s", "Requests/s",
        *(("Goodput/s",) if terms.has_slo else ()),
        *(("Cost per 10⁶",) if terms.hourly_price else ()),
        "× eager", "Of the limit",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for point in summary.points:
        if "output_tokens_per_s" not in point.intervals:
            nothing = (str(point.concurrency), point.who, "nothing answered whole")
            rows.append((*nothing, *([""] * (len(header) - 3))))
            continue
        rate = point.intervals["output_tokens_per_s"].mean
        eager = summary.find("eager", point.concurrency)
        over = (
            rate / eager.intervals["output_tokens_per_s"].mean
            if eager and "output_tokens_per_s" in eager.intervals
            else None
        )
        roof = _limit(limits, point.concurrency)
        rows.append(
            (
                str(point.concurrency),
                point.who,
                _with_interval(point, "output_tokens_per_s"),
                _with_interval(point, "output_tokens_per_s_per_user"),
                _with_interval(point, "ttft_s", 1e3),
                _with_interval(point, "itl_s", 1e3),
                _with_interval(point, "request_latency_s"),
                _with_interval(point, "requests_per_s"),
                *((_with_interval(point, "goodput_per_s"),) if terms.has_slo else ()),
                *(
                    (_with_interval(point, "cost_per_million_tokens"),)
                    if terms.hourly_price
                    else ()
                ),
                f"{over:.2f}" if over and point.who == "engine" else "",
                f"{rate / roof['output_tokens_per_s']:.1%}" if roof else "",
            )
        )
    rows.sort(key=lambda row: int(row[0]))
    note = "Means over the repeats, ± half the 95 % interval; one repeat has no interval."
    return Table(header, tuple(rows), note)


def _percentiles(summary: Summary) -> Table:
    rows = []
    for point in summary.points:
        for name in ("ttft_s", "itl_s", "itl_pooled_s", "request_latency_s"):
            spread = point.distributions.get(name)
            if spread is None:
                continue
            told = [
                NOT_ENOUGH if value is None else _short(value * 1e3)
                for value in spread.percentiles.values()
            ]
            rows.append(
                (
                    str(point.concurrency), point.who, f"{METRICS[name].title} ms",
                    str(spread.n), _short(spread.mean * 1e3), _short(spread.std * 1e3), *told,
                )
            )  # fmt: skip
    rows.sort(key=lambda row: int(row[0]))
    header = ("Concurrency", "Side", "Metric", "n", "mean", "std", "p50", "p90", "p95", "p99")
    note = (
        f"Percentiles by linear interpolation. “{NOT_ENOUGH}”: p99 needs {fewest(99)} requests "
        "(10 × concurrency, if that is more), p95 a fifth of them, p90 a tenth."
    )
    return Table(header, tuple(rows), note)


def _against(summary: Summary, previous: Previous | None) -> Table:
    if previous is None or previous.why_not:
        return Table((), ())
    rows = []
    for old in previous.measurements:
        point = summary.find("engine", old.concurrency)
        if point is None or "output_tokens_per_s" not in point.intervals:
            continue
        if (round(point.input_tokens), point.output_tokens) != (
            old.input_tokens,
            old.output_tokens,
        ):
            continue
        for name, scale in (("output_tokens_per_s", 1.0), ("ttft_s", 1e3), ("itl_s", 1e3)):
            new, before = point.intervals[name].mean * scale, getattr(old, name) * scale
            unit = " ms" if scale != 1 else ""
            rows.append(
                (
                    str(old.concurrency), f"{METRICS[name].title}{unit}",
                    _with_interval(point, name, scale), _short(before), f"{new / before - 1:+.1%}",
                )
            )  # fmt: skip
    note = (
        f"{previous.engine[:12]}, which {previous.alias} pointed to, measured when it was built; "
        "the performance gate compares the two by turns."
    )
    if not rows:
        note = f"Not comparable: {previous.engine[:12]} was measured with another workload."
    return Table(("Concurrency", "Metric", "This engine", "Before", "Change"), tuple(rows), note)


def _curve(summary: Summary, limits: Mapping[str, Any], previous: Previous | None) -> str:
    lines = []
    for who, style in (("engine", _ENGINE), ("eager", _EAGER)):
        points = [p for p in summary.of(who) if "output_tokens_per_s" in p.intervals]
        if points:
            lines.append(
                Line(
                    who,
                    [
                        (
                            p.intervals["request_latency_s"].mean,
                            p.intervals["output_tokens_per_s"].mean,
                        )
                        for p in points
                    ],
                    style,
                    [str(p.concurrency) for p in points],
                )
            )
    roofs: Any = limits.get("points") or ()
    best = max((y for line in lines for _, y in line.points), default=0.0)
    if roofs and max(r["output_tokens_per_s"] for r in roofs) > _FAR * best:
        roofs = ()  # would squeeze all else into a corner; the table has it
    if roofs and summary.of("engine"):
        tokens = summary.of("engine")[0].output_tokens
        lines.append(
            Line(
                "hardware limit",
                [
                    (r["ttft_s"] + (tokens - 1) * r["itl_s"], r["output_tokens_per_s"])
                    for r in roofs
                ],
                _LIMIT,
                [str(r["concurrency"]) for r in roofs],
                dashed=True,
            )
        )
    if previous and previous.measurements and not previous.why_not:
        told = previous.measurements
        lines.append(
            Line(
                "engine before",
                [(m.ttft_s + (m.output_tokens - 1) * m.itl_s, m.output_tokens_per_s) for m in told],
                _PREVIOUS,
                ["" for _ in told],
                dashed=True,
            )
        )
    return plot(
        "Throughput and latency at each concurrency",
        lines,
        x_label="request latency, s (logarithmic)",
        y_label="output tokens/s, by concurrency",
        log_x=True,
    )


def _spread(samples: Sequence[Sample], name: str, title: str) -> str:
    """Who had how much of it: the engine at up to four concurrencies, eager at the lowest."""
    metric: Any = METRICS[name]
    concurrencies = sorted({s.concurrency for s in samples if s.who == "engine"})
    if len(concurrencies) > _MOST_CURVES:
        last = len(concurrencies) - 1
        chosen = {round(last * n / (_MOST_CURVES - 1)) for n in range(_MOST_CURVES)}
        concurrencies = [concurrencies[index] for index in sorted(chosen)]
    styles = (0, 2, 3, 4)
    wanted = [("engine", c, s) for c, s in zip(concurrencies, styles, strict=False)]
    wanted += [("eager", c, _EAGER) for c in concurrencies[:1]]
    lines = []
    for who, concurrency, style in wanted:
        values = [
            value
            for s in samples
            if (s.who, s.concurrency, s.status) == (who, concurrency, "ok")
            for value in metric.of(s)
        ]
        if values:
            steps = share_below(values)
            lines.append(Line(f"{who}, {concurrency}", steps, style, dashed=who == "eager"))
    return plot(title, lines, x_label="ms", y_label="% at or below", y_most=100.0)


def _with_interval(point: Point, name: str, scale: float = 1.0) -> str:
    interval = point.intervals.get(name)
    if interval is None:
        return ""
    text = _short(interval.mean * scale)
    return text if interval.n < 2 else f"{text} ± {_short(interval.half * scale)}"


def _limit(limits: Mapping[str, Any], concurrency: int) -> Mapping[str, Any] | None:
    points: Any = limits.get("points") or ()
    return next((p for p in points if p["concurrency"] == concurrency), None)


def _of(limits: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    told: Any = limits.get(name) or {}
    return dict(told)


def _short(value: float) -> str:
    if abs(value) < _NOTHING:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def _markdown(table: Table) -> str:
    if not table.rows:
        return table.note
    lines = [
        f"| {' | '.join(table.header)} |",
        f"|{' --- |' * len(table.header)}",
        *(f"| {' | '.join(row)} |" for row in table.rows),
    ]
    return "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")
