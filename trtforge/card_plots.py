"""The pictures of an engine card: throughput over concurrency, and the time of each token."""

import json
import logging
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtforge.benchmark.metrics import Measurement
from trtforge.charts import Chart, Series, image
from trtforge.errors import ServiceError

if TYPE_CHECKING:
    from trtforge.store import Manifest, Store

# The longest hundredth of the tokens would squeeze all others into a corner.
_SHOWN = 99
_HEADING = "## Benchmark"
_MOST_RAW_BYTES = 128 << 20
_log = logging.getLogger("trtforge")


def with_plots(
    card: str,
    benchmark: Mapping[str, Any] | None,
    token_s: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """The card (of `trtforge.card.engine_card`) with pictures in it, for the Prefect UI.

    Args:
        benchmark: A manifest's, or a benchmark stage's facts; None: the card as it is.
        token_s: What `token_times` read, where there is the raw data.
    """
    if not benchmark or f"{_HEADING}\n" not in card:
        return card
    charts = [throughput(benchmark)]
    if token_s and all(token_s.values()):
        charts.append(token_distribution(token_s))
    plots = "\n\n".join(image(chart) for chart in charts)
    return card.replace(f"{_HEADING}\n", f"{_HEADING}\n\n{plots}\n", 1)


def throughput(benchmark: Mapping[str, Any]) -> Chart:
    """Output tokens/s over the number of requests at once, engine and eager."""
    told = {
        who: [Measurement.from_json(data) for data in benchmark[who]] for who in ("engine", "eager")
    }
    return Chart(
        title="Output tokens/s, by requests at once",
        x_label="requests at once",
        series=[
            Series(who, sorted((m.concurrency, m.output_tokens_per_s) for m in measured))
            for who, measured in told.items()
        ],
        x_ticks=sorted({m.concurrency for m in told["engine"]}),
    )


def token_distribution(token_s: Mapping[str, Sequence[float]]) -> Chart:
    """Which share of the tokens after the first came within how many milliseconds."""
    series = []
    medians = []
    for who, seconds in token_s.items():
        ordered = sorted(seconds)
        last = len(ordered) - 1
        percents = [(1e3 * ordered[math.ceil(last * p / 100)], float(p)) for p in range(_SHOWN + 1)]
        series.append(Series(who, percents))
        medians.append(f"{who} {1e3 * statistics.median(ordered):.1f} ms")
    return Chart(
        title=f"Share of tokens (%) by time; median: {', '.join(medians)}",
        x_label="milliseconds since the token before, all concurrencies",
        series=series,
    )


def token_times(lines: Iterable[str]) -> dict[str, list[float]]:
    """Seconds from each token to the next, by who made them, from a stage's `requests.jsonl`.

    Only the measured requests count, not those that the correctness gate asked.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        record = json.loads(line)
        if "token_s" in record:  # one request; before, a line was a batch
            gaps = [after - before for before, after in pairwise(record["token_s"])]
            found[record["who"]] += gaps
            continue
        if not str(record["id"]).startswith("concurrency-"):
            continue
        for repeat in record["step_s"]:
            found[record["who"]] += [after - before for before, after in pairwise(repeat)]
    return dict(found)


def token_times_of(store: "Store", manifest: "Manifest") -> dict[str, list[float]] | None:
    """The times of every measured token of a published engine; None where they are not kept.

    None also where the store does not give them: a card without a picture is a card.
    """
    ref = next((ref for ref in manifest.evidence if ref.path == "requests.jsonl"), None)
    if ref is None or ref.size_bytes > _MOST_RAW_BYTES:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="trtforge-plot-") as scratch:
            raw = Path(scratch) / ref.path
            store.get_file(ref.sha256, ref.size_bytes, raw)
            with raw.open(encoding="utf-8") as lines:
                return token_times(lines)
    except (OSError, ServiceError, ValueError, LookupError) as error:
        _log.warning("the times of the tokens could not be read: %s", error)
        return None
