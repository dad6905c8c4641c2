"""The report for people: one self-contained HTML page, and its short form in markdown.

The page needs nothing but itself: no host, no script, no font. It follows the reader's light or
dark setting.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from trtforge.benchmark.metrics import METRICS, POOLED_ITL, TTFT
from trtforge.benchmark.page_facts import conditions, environment
from trtforge.benchmark.page_plots import curve, spread
from trtforge.benchmark.page_tables import against, limit_at, percentiles, short, sweep
from trtforge.benchmark.previous import Previous
from trtforge.benchmark.report import BenchmarkReport
from trtforge.benchmark.sample import Sample
from trtforge.benchmark.summary import Summary


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
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("trtforge.benchmark", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    limits: Mapping[str, Any] = report.limits
    return templates.get_template("report.html.j2").render(
        title=title,
        headline=headline(summary, limits),
        card=card,
        facts=conditions(report, summary),
        curve=curve(summary, limits, previous),
        ttft=spread(samples, TTFT.name, "Time to first token"),
        itl=spread(samples, POOLED_ITL.name, "Time between tokens"),
        sweep=sweep(summary, limits),
        percentiles=percentiles(summary),
        against=against(summary, previous),
        previous=previous,
        machine=environment(report),
        formulas=[(m.title, m.name, m.unit, m.formula, m.aiperf) for m in METRICS.values()],
        limit_formulas=limits.get("formulas") or {},
    )


def markdown(
    report: BenchmarkReport, summary: Summary, *, title: str, previous: Previous | None = None
) -> str:
    """The short form: the sweep, how it was measured, and against what."""
    parts = [
        f"# {title}",
        *([f"**{text}**"] if (text := headline(summary, report.limits)) else []),
        sweep(summary, report.limits, brief=True).markdown(),
        percentiles(summary).markdown(),
        *([against(summary, previous).markdown()] if previous else []),
        "\n".join(f"- {name}: {value}" for name, value in conditions(report, summary)),
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
    text = f"{short(rate)} output tokens/s at concurrency {best.concurrency}"
    eager = summary.find("eager", best.concurrency)
    if eager and "output_tokens_per_s" in eager.intervals:
        text += f", {rate / eager.intervals['output_tokens_per_s'].mean:.2f}× eager PyTorch"
    roof = limit_at(limits, best.concurrency)
    if roof:
        text += f", {rate / roof['output_tokens_per_s']:.0%} of the hardware limit"
    return text
