"""compare: two published engines, by the raw data of their benchmarks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtforge.benchmark.metrics import METRICS
from trtforge.benchmark.page_tables import short
from trtforge.benchmark.report import BOUNDARY, BenchmarkReport
from trtforge.benchmark.sample import Sample
from trtforge.benchmark.statistics import Interval
from trtforge.benchmark.summary import Summary, summarise
from trtforge.stages.bench_report import read_engine, read_run
from trtforge.stages.stage import Workshop
from trtforge.store import Manifest
from trtforge.store.benchmarks import Benchmarks

_COMPARED = ("output_tokens_per_s", "ttft_s", "itl_s", "request_latency_s")
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Compared:
    """One metric at one concurrency of both engines; `apart`: their intervals do not touch."""

    concurrency: int
    metric: str
    first: Interval
    second: Interval
    change: float
    apart: bool


@dataclass(frozen=True)
class Comparison:
    """Two engines beside each other.

    Attributes:
        differences: Why they are not comparable: a field, and the value of each; empty when they
            are. Numbers are told all the same only where there are none.
        runs: Of each, the run of `trtforge bench` that the numbers are of; empty: those of its
            build.
    """

    first: str
    second: str
    differences: tuple[tuple[str, str, str], ...]
    rows: tuple[Compared, ...]
    runs: tuple[str, str] = ("", "")

    def to_json(self) -> dict[str, Any]:
        def interval(told: Interval) -> dict[str, Any]:
            ends = {"low": told.low, "high": told.high} if told.n > 1 else {}
            return {"mean": told.mean, "low": None, "high": None, "n": told.n, **ends}

        return {
            "first": self.first,
            "second": self.second,
            "runs": list(self.runs),
            "comparable": not self.differences,
            "differences": [
                {"field": field, "first": mine, "second": theirs}
                for field, mine, theirs in self.differences
            ],
            "rows": [
                {**asdict(row), "first": interval(row.first), "second": interval(row.second)}
                for row in self.rows
            ],
        }

    def markdown(self) -> str:
        """For people."""
        names = [name[:_SHOWN_DIGITS] for name in (self.first, self.second)]
        title = f"# {names[1]} against {names[0]}"
        if self.differences:
            told = "\n".join(f"- {f}: {a!r} and {b!r}" for f, a, b in self.differences)
            return f"{title}\n\nNot comparable; these differ:\n\n{told}\n"
        lines = [
            f"| Concurrency | Metric | {names[0]} | {names[1]} | Change | Beyond the intervals |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            scale = 1.0 if METRICS[row.metric].unit == "tokens/s" else 1e3
            unit = "" if scale == 1 else " ms"
            cells = (
                str(row.concurrency),
                f"{METRICS[row.metric].title}{unit}",
                _told(row.first, scale),
                _told(row.second, scale),
                f"{row.change:+.1%}",
                "yes" if row.apart else "no",
            )
            lines.append(f"| {' | '.join(cells)} |")
        note = (
            "Means over the repeats, ± half their 95 % interval. Measured at different times: "
            f"{self._when()}. `trtforge gate` runs an engine and the one in use by turns."
        )
        return "\n\n".join([title, "\n".join(lines), note]) + "\n"

    def _when(self) -> str:
        told = zip((self.first, self.second), self.runs, strict=True)
        return ", ".join(
            f"{name[:_SHOWN_DIGITS]} {f'in run {run}' if run else 'when it was built'}"
            for name, run in told
        )


@dataclass(frozen=True)
class _Told:
    run_id: str
    manifest: Manifest
    report: BenchmarkReport
    summary: Summary


def compare_published(shop: Workshop, first: str, second: str) -> Comparison:
    """Compare two engines (ids, or their first digits), each by its newest benchmark.

    Raises:
        EngineUnknownError: There is no such engine.
        NoReportError: One of them has no benchmark.
    """
    one, other = _read(shop, first), _read(shop, second)
    differences = _differences(one, other)
    rows = () if differences else tuple(_rows(one.summary, other.summary))
    runs = (one.run_id, other.run_id)
    return Comparison(one.manifest.engine_id, other.manifest.engine_id, differences, rows, runs)


def _read(shop: Workshop, engine: str) -> _Told:
    manifest = shop.store.get_manifest(engine)
    found: tuple[BenchmarkReport, Sequence[Sample]] | None = None
    run_id = ""
    for record in reversed(Benchmarks(shop.store.bucket).of(manifest.engine_id)):
        found = read_run(shop, record.run_id)
        if found:
            run_id = record.run_id
            break
    report, samples = found or read_engine(shop, manifest)
    return _Told(run_id, manifest, report, summarise(samples, report.terms))


def _differences(one: _Told, other: _Told) -> tuple[tuple[str, str, str], ...]:
    def facts(told: _Told) -> dict[str, str]:
        # Those of before lengths were kept tell them in their short form alone.
        first = told.report.engine[0]
        return {
            "device": told.manifest.core.built_with.gpu_name or str(told.report.machine.get("cpu")),
            "ranks": str(told.manifest.core.ranks),
            "workload": f"{first.input_tokens}/{first.output_tokens}",
            "boundary": told.report.boundary or BOUNDARY,
        }

    mine, theirs = facts(one), facts(other)
    return tuple((f, mine[f], theirs[f]) for f in mine if mine[f] != theirs[f])


def _rows(one: Summary, other: Summary) -> list[Compared]:
    rows = []
    for point in one.of("engine"):
        beside = other.find("engine", point.concurrency)
        for name in _COMPARED:
            if beside is None or not (name in point.intervals and name in beside.intervals):
                continue
            first, second = point.intervals[name], beside.intervals[name]
            apart = first.high < second.low or second.high < first.low
            change = second.mean / first.mean - 1
            rows.append(Compared(point.concurrency, name, first, second, change, apart))
    return rows


def _told(interval: Interval, scale: float) -> str:
    text = short(interval.mean * scale)
    return text if interval.n < 2 else f"{text} ± {short(interval.half * scale)}"
