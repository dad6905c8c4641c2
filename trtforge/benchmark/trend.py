"""The trend of an engine's benchmarks, as markdown with a picture."""

from collections.abc import Sequence

from trtforge.benchmark.regression import METRIC, Regression, comparable
from trtforge.charts import Chart, Series, image
from trtforge.store.benchmarks import BenchmarkRecord

_MOST_CURVES = 4
_MOST_ROWS = 20


def trend(history: Sequence[BenchmarkRecord], regression: Regression | None) -> str:
    """What the newest of these benchmarks says beside those it can be compared with.

    Args:
        history: Oldest first, at least one.
    """
    newest = history[-1]
    alike = [record for record in history if comparable(newest, record)]
    begin = alike[0].at
    chosen = [point.concurrency for point in newest.points][-_MOST_CURVES:]
    series = [
        Series(
            f"concurrency {concurrency}",
            [
                ((record.at - begin).total_seconds() / 86400, point.values[METRIC].mean)
                for record in alike
                for point in record.points
                if point.concurrency == concurrency and METRIC in point.values
            ],
        )
        for concurrency in chosen
    ]
    chart = Chart(
        title=f"Output tokens/s of engine {newest.engine_id[:12]}",
        x_label=f"days since {begin:%Y-%m-%d %H:%M} UTC",
        series=series,
    )
    verdict = f"**Regression: {regression}.**" if regression else "No regression."
    rows = [
        f"| {record.at:%Y-%m-%d %H:%M} | {_told(record)} | `{record.run_id}` |"
        for record in reversed(alike[-_MOST_ROWS:])
    ]
    left = len(history) - len(alike)
    return "\n\n".join(
        [
            f"# Benchmarks of engine {newest.engine_id[:12]}",
            verdict,
            f"{newest.workload}, {newest.boundary}, on {newest.device}.",
            image(chart),
            "\n".join(["| When (UTC) | Output tokens/s | Run |", "| --- | --- | --- |", *rows]),
            *([f"{left} with another workload or device are left out."] if left else []),
        ]
    )


def _told(record: BenchmarkRecord) -> str:
    parts = []
    for point in record.points:
        value = point.values.get(METRIC)
        if value is not None:
            spread = "" if value.high is None else f" ± {value.high - value.mean:.2g}"
            parts.append(f"{value.mean:.1f}{spread} at {point.concurrency}")
    return ", ".join(parts)
