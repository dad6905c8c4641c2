"""What stands beside a report's numbers: how they were measured, and on what machine."""

from collections.abc import Mapping
from typing import Any

from trtforge.benchmark.report import BenchmarkReport
from trtforge.benchmark.summary import Summary

_LOST = ("short", "failed", "timed-out")
_NAMES = {
    "cpu": "CPU",
    "gpu": "GPU",
    "os": "System",
    "cuda": "CUDA",
    "cpu_features": "CPU features",
}


def conditions(report: BenchmarkReport, summary: Summary) -> list[tuple[str, str]]:
    """How it was measured: without this no number means anything."""
    load: Mapping[str, Any] = report.workload
    rows = []
    if load:
        repeats, warmups = load["repeats"], load["warmups"]
        rows += [
            ("Workload", f"{_shape(load)}, tokens exact, end of sequence ignored"),
            ("Loop", f"closed, {load['sampling']}, seed {load['seed']}"),
            (
                "Runs",
                f"{_count(repeats, 'repeat', 'repeats')}; at each concurrency "
                f"{_count(warmups, 'warm-up batch', 'warm-up batches')} thrown away",
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


def environment(report: BenchmarkReport) -> list[tuple[str, str]]:
    """The machine, and what loading the two sides took of it."""
    rows = [(_NAMES.get(name, _spaced(name)), str(v)) for name, v in report.machine.items() if v]
    loads = report.load_s or (report.engine_load_s,)
    rows.append(("Engine load", ", ".join(f"{s:.2f} s" for s in loads)))
    rows.append(("Engine peak host memory", _gigabytes(report.engine_peak_rss_bytes)))
    if report.eager:
        rows.append(("Eager load", f"{report.eager_load_s:.2f} s"))
        rows.append(("Eager peak host memory", _gigabytes(report.eager_peak_rss_bytes)))
        rows += [(f"Eager {name}", version) for name, version in report.eager_versions.items()]
    limits: Mapping[str, Any] = report.limits
    rates = limits.get("rates")
    if rates:
        rows.append(("Copy bandwidth, measured", f"{rates['copy_bytes_per_s'] / 1e9:,.1f} GB/s"))
        rate = rates["matmul_flops_per_s"]
        rows.append(("bf16 matrix products, measured", f"{rate / 1e12:,.2f} TFLOP/s"))
    for number, gpu in enumerate(report.gpus):
        for name, value in gpu.items():
            if value is not None:
                told = f"{value:,.0f}" if isinstance(value, float) else str(value)
                rows.append((f"GPU {number} {name.replace('_', ' ')}", told))
    return rows


def _shape(load: Mapping[str, Any]) -> str:
    """`chat: 1000 in, 200 out`; a label that is nothing but the lengths is not said twice."""
    first = load["input_tokens"] or "the prompts’ own"
    lengths = f"{first} in, {load['output_tokens']} out"
    name = str(load["label"])
    return lengths if "/" in name else f"{name}: {lengths}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _spaced(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
