"""The plots of the report page."""

from collections.abc import Mapping, Sequence
from typing import Any

from trtforge.benchmark.metrics import METRICS
from trtforge.benchmark.plots import Line, plot, share_below
from trtforge.benchmark.previous import Previous
from trtforge.benchmark.sample import Sample
from trtforge.benchmark.summary import Summary

_MOST_CURVES = 4
_FAR = 10
_ENGINE, _EAGER, _LIMIT, _PREVIOUS = 0, 1, 2, 3


def curve(summary: Summary, limits: Mapping[str, Any], previous: Previous | None) -> str:
    """Throughput over latency at each concurrency: both sides, the limit, the engine before."""
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


def spread(samples: Sequence[Sample], name: str, title: str) -> str:
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
            lines.append(Line(f"{who} at {concurrency}", steps, style, dashed=who == "eager"))
    return plot(title, lines, x_label="ms", y_label="% at or below", y_most=100.0)
