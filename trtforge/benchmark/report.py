"""The report of one measurement: what the benchmark stage keeps, and the gates' evidence."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field, JsonValue

from trtforge.benchmark.limits import FORMULAS as LIMIT_FORMULAS
from trtforge.benchmark.limits import DeviceRates, ModelShape, limit
from trtforge.benchmark.metrics import METRICS, Measurement, Terms
from trtforge.benchmark.sample import Sample
from trtforge.benchmark.summary import Summary, summarise
from trtforge.spec import BenchmarkSpec
from trtforge.store.records import Record

BOUNDARY = "in process"
"""What all times are taken around: no server, no network, no tokenisation."""
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
SHORT_FILE = "report.md"

_Facts = dict[str, JsonValue]


def _absent(value: object) -> bool:
    return not value


class BenchmarkReport(Record):
    """`report.json` of a benchmark.

    Attributes:
        machine: What measured (`trtforge.benchmark.machine`).
        formulas: How each number is computed.
        engine: The engine's measurements, one per number of requests at once.
        eager: The original model's in PyTorch, in the same order; empty where it was not at hand.
        eager_versions: Of what ran the original model.
        correctness: The verdicts on the engine's answers (`trtforge.gates.correctness`).
        own_benchmark: What the toolchain's own benchmark measured on the same requests, with its
            own formulas; None where there is none, or where it failed.
        workload: Its label, lengths, requests, warm-ups, repeats and seed.
        order: In which order what was measured.
        summary: `trtforge.benchmark.summary` of the raw data beside the report.
        limits: What the hardware allows (`trtforge.benchmark.limits`), with the rates measured.
        gpus: What each GPU did meanwhile (`trtforge.benchmark.gpu_watch`).
        load_s: Every time the engine was loaded.

    All after `own_benchmark` are empty in reports of before they were kept.
    """

    machine: _Facts
    formulas: dict[str, str]
    engine: tuple[Measurement, ...]
    eager: tuple[Measurement, ...]
    engine_load_s: float
    eager_load_s: float
    engine_peak_rss_bytes: int
    eager_peak_rss_bytes: int
    eager_versions: dict[str, str]
    correctness: tuple[_Facts, ...]
    own_benchmark: _Facts | None = Field(default=None, exclude_if=lambda value: value is None)
    workload: _Facts = Field(default_factory=dict, exclude_if=_absent)
    boundary: str = Field(default="", exclude_if=_absent)
    order: str = Field(default="", exclude_if=_absent)
    summary: _Facts = Field(default_factory=dict, exclude_if=_absent)
    limits: _Facts = Field(default_factory=dict, exclude_if=_absent)
    gpus: tuple[_Facts, ...] = Field(default=(), exclude_if=_absent)
    load_s: tuple[float, ...] = Field(default=(), exclude_if=_absent)

    @property
    def terms(self) -> Terms:
        """What the run is judged and priced by."""
        told: Any = self.summary.get("terms") or {}
        return Terms(**told)

    def again(self, samples: Sequence[Sample]) -> tuple[Summary, bool]:
        """The summary computed from raw data, and whether it is the one that is kept."""
        made = summarise(samples, self.terms)
        return made, made.to_json() == self.summary


def terms_of(spec: BenchmarkSpec) -> Terms:
    """What a spec wants a run judged and priced by."""
    return Terms(spec.slo.ttft_ms / 1e3, spec.slo.itl_ms / 1e3, spec.hourly_price)


def workload_facts(spec: BenchmarkSpec) -> dict[str, Any]:
    """What was asked of both sides."""
    load = spec.workload
    return {
        "label": load.label,
        "input_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
        "requests": spec.requests,
        "warmups": spec.warmups,
        "repeats": spec.repeats,
        "seed": spec.seed,
        "timeout_s": spec.timeout_s,
        "ignore_eos": True,
        "sampling": "greedy",
        "loop": "closed",
    }


def order_of(spec: BenchmarkSpec, *, eager: bool) -> str:
    """In which order it was measured, for people."""
    back = ", every other one backwards" if spec.repeats > 1 else ""
    sweep = f"each repeat goes through all concurrencies{back}"
    if not eager:
        return sweep
    if spec.in_turns:
        return f"engine and eager by turns, each loaded anew for every repeat; {sweep}"
    return f"the engine's repeats, then eager's, each side loaded once; {sweep}"


def limit_facts(
    shape: ModelShape | None, rates: DeviceRates | None, summary: Summary, ranks: int
) -> dict[str, Any]:
    """The hardware limit at each of the engine's concurrencies; empty where it is not known."""
    if shape is None or rates is None:
        return {}
    points = [
        limit(
            shape,
            rates,
            concurrency=point.concurrency,
            input_tokens=point.input_tokens,
            output_tokens=point.output_tokens,
            ranks=ranks,
        ).to_json()
        for point in summary.of("engine")
    ]
    return {
        "rates": rates.to_json(),
        "ranks": ranks,
        "weight_bytes": shape.weight_bytes,
        "points": points,
        "formulas": LIMIT_FORMULAS,
    }


def all_formulas() -> dict[str, str]:
    """How each metric is computed, by its name."""
    return {name: metric.formula for name, metric in METRICS.items()}
