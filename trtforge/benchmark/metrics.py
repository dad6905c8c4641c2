"""What is measured: each metric declared once, with its unit, its formula and what computes it.

Names and formulas follow NVIDIA's aiperf (each metric says what it is called there), plus the
inter-token latency pooled over all tokens, which vLLM calls ITL. The boundary is the engine in
process: no server, no network, no tokenisation. All times are seconds.

    a request's numbers     from one request that gave every token (`REQUEST_METRICS`)
    a token's               from each gap between two tokens of such a request (`itl_pooled_s`)
    a run's                 from all requests of one repeat at one concurrency (`RUN_METRICS`)
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from trtforge.benchmark.sample import Sample
from trtforge.errors import BuildError

Values = Callable[[Sample], Sequence[float]]


class ShortOutputError(BuildError):
    """A request did not generate every token: its times would not be comparable."""


@dataclass(frozen=True)
class Terms:
    """What a run is judged and priced by; 0: by nothing.

    Attributes:
        ttft_s, itl_s: What a request must keep to count for goodput.
        hourly_price: Of the machine, in any currency.
    """

    ttft_s: float = 0.0
    itl_s: float = 0.0
    hourly_price: float = 0.0

    @property
    def has_slo(self) -> bool:
        return bool(self.ttft_s or self.itl_s)


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        name: With its unit.
        aiperf: Its tag there; empty where aiperf has none.
        formula: In words of the raw data.
    """

    name: str
    title: str
    unit: str
    formula: str
    aiperf: str
    larger_is_better: bool


@dataclass(frozen=True)
class RequestMetric(Metric):
    """A metric that each request (or each of its tokens) has; none where it has too few tokens."""

    of: Values


@dataclass(frozen=True)
class RunMetric(Metric):
    """A metric of all requests of one repeat at one concurrency; None where it is not asked for."""

    of: Callable[[Sequence[Sample], Terms], float | None]


def _itl(sample: Sample) -> Sequence[float]:
    if len(sample.token_s) < 2:
        return ()
    return ((sample.last_s - sample.first_s) / (len(sample.token_s) - 1),)


def _good(sample: Sample, terms: Terms) -> bool:
    within = terms.ttft_s == 0 or sample.first_s - sample.start_s <= terms.ttft_s
    return within and (terms.itl_s == 0 or all(itl <= terms.itl_s for itl in _itl(sample)))


def _duration_s(run: Sequence[Sample]) -> float:
    return max(s.last_s for s in run) - min(s.start_s for s in run)


def _tokens_per_s(run: Sequence[Sample], _: Terms) -> float:
    return sum(len(s.token_s) for s in run) / _duration_s(run)


def _requests_per_s(run: Sequence[Sample], _: Terms) -> float:
    return len(run) / _duration_s(run)


def _goodput(run: Sequence[Sample], terms: Terms) -> float | None:
    if not terms.has_slo:
        return None
    return sum(_good(s, terms) for s in run) / _duration_s(run)


def _cost(run: Sequence[Sample], terms: Terms) -> float | None:
    if not terms.hourly_price:
        return None
    return terms.hourly_price / (_tokens_per_s(run, terms) * 3600) * 1e6


TTFT = RequestMetric(
    "ttft_s",
    "TTFT",
    "s",
    "first token - request start",
    "time_to_first_token",
    False,
    lambda sample: (sample.first_s - sample.start_s,),
)
ITL = RequestMetric(
    "itl_s",
    "ITL",
    "s",
    "(last token - first token) / (output tokens - 1)",
    "inter_token_latency",
    False,
    _itl,
)
LATENCY = RequestMetric(
    "request_latency_s",
    "Request latency",
    "s",
    "last token - request start",
    "request_latency",
    False,
    lambda sample: (sample.last_s - sample.start_s,),
)
PER_USER = RequestMetric(
    "output_tokens_per_s_per_user",
    "Tokens/s per user",
    "tokens/s",
    "1 / itl_s",
    "output_token_throughput_per_user",
    True,
    lambda sample: tuple(1 / itl for itl in _itl(sample) if itl > 0),
)
POOLED_ITL = RequestMetric(
    "itl_pooled_s",
    "Pooled ITL",
    "s",
    "token - token before, every gap of every request",
    "",
    False,
    lambda sample: tuple(after - before for before, after in pairwise(sample.token_s)),
)
THROUGHPUT = RunMetric(
    "output_tokens_per_s",
    "Output tokens/s",
    "tokens/s",
    "sum of output tokens / (last token of all - first request start)",
    "output_token_throughput",
    True,
    _tokens_per_s,
)
REQUEST_RATE = RunMetric(
    "requests_per_s",
    "Requests/s",
    "requests/s",
    "requests / (last token of all - first request start)",
    "request_throughput",
    True,
    _requests_per_s,
)
GOODPUT = RunMetric(
    "goodput_per_s",
    "Goodput",
    "requests/s",
    "requests with ttft_s and itl_s within the SLO / (last token of all - first request start)",
    "goodput",
    True,
    _goodput,
)
COST = RunMetric(
    "cost_per_million_tokens",
    "Cost per 10⁶ output tokens",
    "currency",
    "hourly price / (output_tokens_per_s * 3600) * 1000000",
    "",
    False,
    _cost,
)
REQUEST_METRICS = (TTFT, ITL, LATENCY, PER_USER, POOLED_ITL)
RUN_METRICS = (THROUGHPUT, REQUEST_RATE, GOODPUT, COST)
METRICS: Mapping[str, Metric] = {m.name: m for m in (*REQUEST_METRICS, *RUN_METRICS)}
FORMULAS = {
    "ttft_s": TTFT.formula,
    "itl_s": ITL.formula,
    "output_tokens_per_s": THROUGHPUT.formula,
}
"""Of a `Measurement`'s numbers."""


@dataclass(frozen=True)
class Measurement:
    """The short of one concurrency, as manifests keep it: medians over the repeats.

    Attributes:
        input_tokens: Of the prompts; their mean where lengths differ.
        ttft_s, itl_s: Median over the repeats of the mean over its requests.
    """

    concurrency: int
    input_tokens: int
    output_tokens: int
    repeats: int
    ttft_s: float
    itl_s: float
    output_tokens_per_s: float
    output_tokens_per_s_min: float
    output_tokens_per_s_max: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurement":
        return cls(**data)


def measure(repeats: Iterable[Sequence[Sample]]) -> Measurement:
    """The short of one concurrency.

    Raises:
        ShortOutputError: a request gave fewer tokens than asked for, or a repeat has none that
            gave all.
    """
    runs = [tuple(run) for run in repeats]
    for sample in (sample for run in runs for sample in run):
        if sample.status in ("short", "failed"):
            raise ShortOutputError(
                f"request {sample.request} of repeat {sample.repeat} at concurrency "
                f"{sample.concurrency} gave {len(sample.token_s)} tokens instead of "
                f"{sample.output_tokens}, its times say nothing",
                remedy="Build the engine again; it must not stop before it is told to",
            )
    counted = [tuple(s for s in run if s.status == "ok") for run in runs]
    if not counted or not all(counted):
        raise ShortOutputError(
            "no request of a repeat was answered in time",
            remedy="Raise benchmark.timeout_s, or lower benchmark.concurrency",
        )
    throughputs = [_tokens_per_s(run, Terms()) for run in counted]
    flat = [sample for run in counted for sample in run]
    return Measurement(
        concurrency=flat[0].concurrency,
        input_tokens=round(statistics.fmean(s.input_tokens for s in flat)),
        output_tokens=flat[0].output_tokens,
        repeats=len(counted),
        ttft_s=statistics.median(_mean(TTFT, run) for run in counted),
        itl_s=statistics.median(_mean(ITL, run) for run in counted),
        output_tokens_per_s=statistics.median(throughputs),
        output_tokens_per_s_min=min(throughputs),
        output_tokens_per_s_max=max(throughputs),
    )


def _mean(metric: RequestMetric, run: Sequence[Sample]) -> float:
    return statistics.fmean(value for sample in run for value in metric.of(sample))
