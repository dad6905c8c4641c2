"""What one run of a load gave, as the performance gate compares it: one number per metric.

Of one repeat at one concurrency. Where it has several requests, times are means over them.

    ttft_s                first token - request start
    itl_s                 (last token - first token) / (output tokens - 1)
    output_tokens_per_s   output tokens of all requests / (last token - first request's start)
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trtforge.benchmark.sample import Sample, of_cell, read_samples
from trtforge.spec import PerformanceMetric


@dataclass(frozen=True, order=True)
class Shape:
    """What was asked: requests at once, and the lengths of each (in: 0 where they differ)."""

    concurrency: int
    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.concurrency} x {self.input_tokens}/{self.output_tokens}"


Repeats = dict[Shape, list[Sequence[Sample]]]
"""By what was asked, the requests of each repeat."""


def value(metric: PerformanceMetric, requests: Sequence[Sample]) -> float:
    """A metric of one repeat."""
    if metric == "ttft_s":
        return statistics.fmean(r.first_s - r.start_s for r in requests)
    if metric == "itl_s":
        return statistics.fmean((r.last_s - r.first_s) / (len(r.token_s) - 1) for r in requests)
    seconds = max(r.last_s for r in requests) - min(r.start_s for r in requests)
    return sum(len(r.token_s) for r in requests) / seconds


def timings_of(
    jobs: Iterable[Mapping[str, Any]], outputs: Mapping[str, Mapping[str, Any]]
) -> Repeats:
    """Of what a run driver gave for jobs (`trtforge.engines.jobs`), by the ids of the jobs."""
    found: Repeats = {}
    for job in jobs:
        shape = Shape(len(job["prompts"]), len(job["prompts"][0]), job["max_new_tokens"])
        for repeat, times in enumerate(outputs[job["id"]]["step_s"]):
            requests = [
                Sample(
                    "engine",
                    "",
                    shape.concurrency,
                    repeat,
                    request,
                    0.0,
                    tuple(times),
                    shape.input_tokens,
                    shape.output_tokens,
                )
                for request in range(shape.concurrency)
            ]
            found.setdefault(shape, []).append(requests)
    return found


def recorded_timings(lines: Iterable[str], measurements: Iterable[Mapping[str, Any]]) -> Repeats:
    """Of the `requests.jsonl` that a benchmark left of its engine; only requests that went well.

    Args:
        measurements: The summary beside it: older lines do not tell the lengths of prompts.
    """
    told = {m["concurrency"]: int(m["input_tokens"]) for m in measurements}
    samples = [
        replace(s, input_tokens=s.input_tokens or told.get(s.concurrency, 0))
        for s in read_samples(lines)
        if s.who == "engine" and s.status == "ok"
    ]
    found: Repeats = {}
    for concurrency in sorted({s.concurrency for s in samples}):
        repeats = of_cell(samples, "engine", concurrency)
        lengths = {(s.input_tokens, s.output_tokens) for requests in repeats for s in requests}
        inputs, outputs = ({length[i] for length in lengths} for i in (0, 1))
        shape = Shape(concurrency, *(min(n) if len(n) == 1 else 0 for n in (inputs, outputs)))
        found[shape] = list(repeats)
    return found
