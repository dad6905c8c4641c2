"""Metrics of a trace written by hand, whose numbers are exact in binary, and aiperf's formulas."""

import json
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.benchmark.metrics import (
    COST,
    FORMULAS,
    GOODPUT,
    ITL,
    LATENCY,
    METRICS,
    PER_USER,
    POOLED_ITL,
    REQUEST_METRICS,
    REQUEST_RATE,
    THROUGHPUT,
    TTFT,
    Measurement,
    ShortOutputError,
    Terms,
    measure,
)
from trtforge.benchmark.sample import Sample, Status
from trtforge.errors import BuildError


def sample(
    *token_s: float, start: float = 0.0, repeat: int = 0, request: int = 0, wanted: int = 0,
    concurrency: int = 2, status: Status = "ok",
) -> Sample:  # fmt: skip
    return Sample(
        who="engine",
        workload="chat",
        concurrency=concurrency,
        repeat=repeat,
        request=request,
        start_s=start,
        token_s=token_s,
        input_tokens=5,
        output_tokens=wanted or len(token_s),
        status=status,
    )


# Two users; the second one's request was sent a quarter of a second later.
FIRST = sample(0.5, 0.75, 1.5)
SECOND = sample(1.0, 1.5, 2.25, start=0.25, request=1)
RUN = (FIRST, SECOND)


class TestATraceByHand:
    @pytest.mark.parametrize(
        ("metric", "first", "second"),
        [
            (TTFT, [0.5], [0.75]),
            (ITL, [0.5], [0.625]),
            (LATENCY, [1.5], [2.0]),
            (PER_USER, [2.0], [1.6]),
            (POOLED_ITL, [0.25, 0.75], [0.5, 0.75]),
        ],
    )
    def test_of_each_request(self, metric: Any, first: list[float], second: list[float]) -> None:
        assert list(metric.of(FIRST)) == first
        assert list(metric.of(SECOND)) == second

    def test_of_the_run(self) -> None:
        # Six tokens and two requests from 0 to 2.25 s.
        assert THROUGHPUT.of(RUN, Terms()) == 6 / 2.25
        assert REQUEST_RATE.of(RUN, Terms()) == 2 / 2.25

    def test_the_clock_may_begin_anywhere(self) -> None:
        later = [
            sample(*(t + 64 for t in s.token_s), start=s.start_s + 64, request=s.request)
            for s in RUN
        ]
        for metric in REQUEST_METRICS:
            assert [list(metric.of(s)) for s in later] == [list(metric.of(s)) for s in RUN]
        assert THROUGHPUT.of(later, Terms()) == THROUGHPUT.of(RUN, Terms())

    @pytest.mark.parametrize(
        ("terms", "good"),
        [
            (Terms(ttft_s=0.5), 1),
            (Terms(ttft_s=0.75), 2),
            (Terms(itl_s=0.5), 1),
            (Terms(ttft_s=0.75, itl_s=0.5), 1),
            (Terms(ttft_s=0.25, itl_s=9), 0),
        ],
    )
    def test_goodput_counts_requests_that_keep_every_limit(self, terms: Terms, good: int) -> None:
        assert GOODPUT.of(RUN, terms) == good / 2.25

    def test_goodput_and_cost_are_told_only_when_asked_for(self) -> None:
        assert GOODPUT.of(RUN, Terms()) is None
        assert COST.of(RUN, Terms()) is None

    def test_a_million_tokens_cost_the_price_of_the_hours_they_take(self) -> None:
        # 10 tokens/s are 36000 an hour.
        ten = [sample(*(0.1 * n for n in range(1, 11)), concurrency=1)]
        assert COST.of(ten, Terms(hourly_price=3.6)) == pytest.approx(100.0)

    def test_one_token_has_no_time_between_tokens(self) -> None:
        assert ITL.of(sample(0.5)) == PER_USER.of(sample(0.5)) == POOLED_ITL.of(sample(0.5)) == ()


def aiperf(requests: list[Sample]) -> dict[str, Any]:
    """aiperf's definitions (its metrics reference, 0.13), on timestamps in nanoseconds."""
    ns = 10**9
    sent = [round(s.start_s * ns) for s in requests]
    came = [[round(t * ns) for t in s.token_s] for s in requests]
    latency = [tokens[-1] - start for tokens, start in zip(came, sent, strict=True)]
    ttft = [tokens[0] - start for tokens, start in zip(came, sent, strict=True)]
    itl = [
        (whole - first) / (len(tokens) - 1)
        for whole, first, tokens in zip(latency, ttft, came, strict=True)
    ]
    duration_s = (max(tokens[-1] for tokens in came) - min(sent)) / ns
    return {
        "time_to_first_token": [t / ns for t in ttft],
        "request_latency": [t / ns for t in latency],
        "inter_token_latency": [t / ns for t in itl],
        "output_token_throughput_per_user": [1 / (t / ns) for t in itl],
        "output_token_throughput": sum(map(len, came)) / duration_s,
        "request_throughput": len(requests) / duration_s,
    }


@st.composite
def runs(draw: st.DrawFn) -> list[Sample]:
    made = []
    for request in range(draw(st.integers(1, 5))):
        start = draw(st.floats(0, 5))
        gaps = draw(st.lists(st.floats(1e-4, 2), min_size=2, max_size=12))
        times = [start + sum(gaps[: n + 1]) for n in range(len(gaps))]
        made.append(sample(*times, start=start, request=request))
    return made


@given(runs())
def test_the_same_raw_data_give_what_aiperf_computes(run: list[Sample]) -> None:
    run = [Sample(**json.loads(s.to_line())) for s in run]
    theirs = aiperf(run)
    for metric in METRICS.values():
        if metric.aiperf not in theirs:
            continue
        if metric in REQUEST_METRICS:
            mine = [v for s in run for v in metric.of(s)]  # type: ignore[attr-defined]
            assert mine == pytest.approx(theirs[metric.aiperf], rel=1e-4)
        else:
            mine = metric.of(run, Terms())  # type: ignore[attr-defined]
            assert mine == pytest.approx(theirs[metric.aiperf], rel=1e-6)


def test_every_metric_says_what_it_is() -> None:
    for name, metric in METRICS.items():
        assert name == metric.name
        assert metric.title
        assert metric.unit
        assert metric.formula


class TestTheShortOfOneConcurrency:
    def test_medians_over_the_repeats_and_the_range_of_throughput(self) -> None:
        repeats = [
            [sample(*times, repeat=n, request=r) for r in range(2)]
            for n, times in enumerate([(0.5, 1.0, 1.5), (0.25, 0.5, 0.75), (1.0, 2.0, 6.0)])
        ]
        assert measure(repeats) == Measurement(
            concurrency=2,
            input_tokens=5,
            output_tokens=3,
            repeats=3,
            ttft_s=0.5,
            itl_s=0.5,
            output_tokens_per_s=4.0,
            output_tokens_per_s_min=1.0,
            output_tokens_per_s_max=8.0,
        )

    def test_each_median_is_taken_over_its_own_values(self) -> None:
        times = [(0.25, 4.25), (0.5, 1.0), (1.0, 2.0)]
        found = measure([[sample(*t, repeat=n)] for n, t in enumerate(times)])
        assert (found.ttft_s, found.itl_s, found.output_tokens_per_s) == (0.5, 1.0, 1.0)

    def test_each_is_written_down(self) -> None:
        assert set(FORMULAS) <= set(Measurement.__dataclass_fields__)

    def test_it_survives_json(self) -> None:
        found = measure([[sample(0.1, 0.2, 0.4)], [sample(0.2, 0.3, 0.5, repeat=1)]])
        assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found

    @pytest.mark.parametrize("status", ["short", "failed"])
    def test_an_output_of_another_length_fails_the_run(self, status: Status) -> None:
        times = (0.5,) if status == "short" else ()
        short = sample(*times, wanted=3, request=7, repeat=1, status=status)
        with pytest.raises(ShortOutputError, match=f"{len(times)} tokens instead of 3") as caught:
            measure([[FIRST], [short]])
        assert isinstance(caught.value, BuildError)
        assert "request 7 of repeat 1 at concurrency 2" in str(caught.value)

    def test_a_request_that_took_too_long_does_not_count(self) -> None:
        late = sample(5.0, 50.0, 500.0, request=1, status="timed-out")
        assert measure([[FIRST, late]]).ttft_s == 0.5
        with pytest.raises(ShortOutputError, match="no request of a repeat was answered in time"):
            measure([[late]])


def test_means_of_a_repeat_are_over_its_requests() -> None:
    assert measure([RUN]).ttft_s == statistics.fmean([0.5, 0.75])
