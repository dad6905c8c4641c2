"""The performance gate: what counts as slower, and how often it is wrong."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.canonical import canonical_json
from trtforge.gates.performance import (
    PerformanceVerdict,
    Setting,
    compare_engines,
    compare_metric,
    conclude,
    setting_differences,
    shape_differences,
    told_verdict,
)
from trtforge.gates.timings import Repeats, Shape, recorded_timings, timings_of, value
from trtforge.spec import PerformanceGateSpec

TOLERANCE = 0.05
SHAPE = Shape(concurrency=2, input_tokens=4, output_tokens=3)


def runs(times: list[list[float]], shape: Shape = SHAPE) -> Repeats:
    """What a run driver's token times of each repeat come to."""
    job = {
        "id": "load",
        "prompts": [[0] * shape.input_tokens] * shape.concurrency,
        "max_new_tokens": shape.output_tokens,
    }
    return timings_of([job], {"load": {"step_s": times}})


def times(seconds: float, noise: list[float]) -> list[list[float]]:
    """Repeats of an engine that takes `seconds` to its first token, and as long for each other."""
    return [[seconds * n * (1 + x) for n in (1, 2, 3)] for x in noise]


NOISE = [0.0, 0.01, -0.01, 0.005, -0.005]


class TestMetrics:
    def test_each_is_what_its_formula_says(self) -> None:
        (requests,) = runs([[0.5, 0.75, 1.25]])[SHAPE]
        assert value("ttft_s", requests) == 0.5
        assert value("itl_s", requests) == (1.25 - 0.5) / 2
        assert value("output_tokens_per_s", requests) == 6 / 1.25


class TestOneComparison:
    def judged(self, metric: Any, ratio: float, noise: list[float] = NOISE) -> Any:
        new = [ratio * (1 + x) for x in noise]
        return compare_metric(metric, 1, new, [1.0] * len(noise), tolerance=TOLERANCE)

    @pytest.mark.parametrize(
        ("metric", "ratio", "passes"),
        [
            ("output_tokens_per_s", 1.0, True),
            ("output_tokens_per_s", 1.5, True),
            # Below the tolerance, but not beyond doubt.
            ("output_tokens_per_s", 0.945, True),
            ("output_tokens_per_s", 0.9, False),
            ("ttft_s", 1.0, True),
            ("ttft_s", 0.5, True),
            ("ttft_s", 1.055, True),
            ("ttft_s", 1.1, False),
            ("itl_s", 1.1, False),
        ],
    )
    def test_only_what_is_worse_beyond_doubt_fails(
        self, metric: str, ratio: float, passes: bool
    ) -> None:
        comparison = self.judged(metric, ratio)
        assert comparison.passed is passes
        assert comparison.low < comparison.ratio < comparison.high
        assert comparison.ratio == pytest.approx(ratio, rel=1e-3)

    def test_noise_that_hides_the_difference_lets_it_pass(self) -> None:
        noise = [20 * x for x in NOISE]
        assert self.judged("output_tokens_per_s", 0.9, noise).passed

    def test_a_machine_that_slows_down_does_not_count_against_the_new_engine(self) -> None:
        drift = [1.0, 0.8, 0.6, 0.5, 0.4]
        comparison = compare_metric(
            "output_tokens_per_s", 1, [100 * d for d in drift], [101 * d for d in drift],
            tolerance=TOLERANCE,
        )  # fmt: skip
        assert comparison.passed
        assert comparison.high - comparison.low < 1e-6

    @given(st.floats(0.5, 2.0), st.lists(st.floats(-0.2, 0.2), min_size=3, max_size=8))
    def test_the_interval_is_the_same_read_backwards(
        self, ratio: float, noise: list[float]
    ) -> None:
        new, old = [ratio * math.exp(x) for x in noise], [1.0] * len(noise)
        there = compare_metric("ttft_s", 1, new, old, tolerance=TOLERANCE)
        back = compare_metric("ttft_s", 1, old, new, tolerance=TOLERANCE)
        assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))

    def test_more_comparisons_make_each_more_careful(self) -> None:
        new = [0.93 * (1 + x) for x in NOISE]
        one, many = (
            compare_metric(
                "output_tokens_per_s", 1, new, [1.0] * 5, tolerance=TOLERANCE, comparisons=n
            )
            for n in (1, 8)
        )
        assert many.low < one.low < one.high < many.high


class TestEngines:
    GATE = PerformanceGateSpec()

    def test_every_metric_at_every_concurrency_that_both_have(self) -> None:
        other = Shape(1, 4, 3)
        new = {**runs(times(1.0, NOISE)), **runs(times(1.0, NOISE), other)}
        old = {**runs(times(1.0, NOISE)), **runs(times(1.0, NOISE), Shape(4, 4, 3))}
        made = compare_engines(new, old, self.GATE)
        assert [(c.metric, c.concurrency) for c in made] == [
            ("output_tokens_per_s", 2),
            ("ttft_s", 2),
        ]
        assert all(c.passed and c.runs == 5 for c in made)

    def test_a_slower_engine_fails_where_it_is_enforced_only(self) -> None:
        made = compare_engines(runs(times(1.2, NOISE)), runs(times(1.0, NOISE)), self.GATE)
        told = {"alias": "latest", "against": "a" * 64, "method": "in turns"}
        enforced = conclude(self.GATE, made, **told)  # type: ignore[arg-type]
        assert (enforced.status, enforced.passed) == ("slower", False)
        assert enforced.describe().startswith("output_tokens_per_s at concurrency 2 is 0.8")
        report = self.GATE.model_copy(update={"mode": "report"})
        reported = conclude(report, made, **told)  # type: ignore[arg-type]
        assert (reported.status, reported.passed) == ("slower, only reported", True)

    @pytest.mark.parametrize("few", [1, 2])
    def test_too_few_repeats_prove_nothing(self, few: int) -> None:
        slow = compare_engines(runs(times(9.0, NOISE[:few])), runs(times(1.0, NOISE)), self.GATE)
        verdict = conclude(self.GATE, slow, alias="latest", against="a" * 64, method="recorded")
        assert (verdict.status, verdict.passed) == ("not comparable", True)
        assert "repeats" in verdict.describe()

    def test_every_verdict_can_be_kept(self) -> None:
        made = compare_engines(runs(times(1.2, NOISE)), runs(times(1.0, NOISE)), self.GATE)
        different = shape_differences([SHAPE], [Shape(2, 8, 3)])
        for verdict in (
            conclude(self.GATE, made, alias="latest", against="a" * 64, method="in turns"),
            PerformanceVerdict("nothing to compare with", 0.05),
            PerformanceVerdict("not comparable", 0.05, "latest", "a" * 64, differences=different),
        ):
            assert told_verdict(json.loads(canonical_json(verdict.to_json()))) == verdict


class TestNotComparable:
    def test_the_field_that_differs_is_named_with_both_values(self) -> None:
        (found,) = setting_differences(Setting("NVIDIA H200", 1), Setting("NVIDIA H100", 1))
        assert str(found) == "device is 'NVIDIA H200', and 'NVIDIA H100' of the engine in use"
        fields = [d.field for d in setting_differences(Setting("a", 1), Setting("b", 2, "HTTP"))]
        assert fields == ["device", "ranks", "boundary"]
        assert setting_differences(Setting("a", 1), Setting("a", 1)) == ()

    def test_another_workload_is_named_with_both_shapes(self) -> None:
        (found,) = shape_differences([Shape(1, 128, 32)], [Shape(1, 1000, 200)])
        assert (found.field, found.new, found.old) == ("workload", "1 x 128/32", "1 x 1000/200")
        assert shape_differences([SHAPE, Shape(1, 1, 2)], [SHAPE]) == ()


class TestRecorded:
    SUMMARY = ({"concurrency": 2, "input_tokens": 4, "output_tokens": 3},)

    def test_batches_that_an_older_benchmark_told_of(self) -> None:
        line = {"who": "engine", "id": "concurrency-2", "step_s": [[1, 2, 3], [2, 3, 4]]}
        other = {"who": "eager", "id": "concurrency-2", "step_s": [[9, 9, 9]]}
        check = {"who": "engine", "id": "prompt-0", "step_s": [[1]]}
        found = recorded_timings(map(json.dumps, (line, other, check)), self.SUMMARY)
        assert list(found) == [SHAPE]
        assert [value("ttft_s", requests) for requests in found[SHAPE]] == [1, 2]

    def test_requests_told_one_by_one(self) -> None:
        def line(repeat: int, request: int, start_s: float, status: str = "ok") -> str:
            token_s = [start_s + 1, start_s + 2, start_s + 4]
            told = {"who": "engine", "workload": "chat", "concurrency": 2, "repeat": repeat,
                    "request": request, "start_s": start_s, "token_s": token_s,
                    "input_tokens": 4, "output_tokens": 3, "status": status}  # fmt: skip
            return json.dumps(told)

        lines = [line(0, 0, 0.0), line(0, 1, 0.5), line(1, 0, 0.0), line(1, 1, 0.0, "short")]
        (first, second) = recorded_timings(lines, ())[SHAPE]
        assert value("output_tokens_per_s", first) == 6 / 4.5
        assert value("output_tokens_per_s", second) == 3 / 4


def fail_rate(true_ratio: float, noise: float, *, trials: int = 400, repeats: int = 5) -> float:
    """How often one comparison of two engines fails, runs being off by `noise` (a share)."""
    source = random.Random(1)
    failed = 0
    for _ in range(trials):
        new, old = (
            [mean * math.exp(source.gauss(0, noise)) for _ in range(repeats)]
            for mean in (true_ratio, 1.0)
        )
        made = compare_metric("output_tokens_per_s", 1, new, old, tolerance=TOLERANCE)
        failed += not made.passed
    return failed / trials


class TestHowOftenItIsWrong:
    """By simulation with a fixed seed; benchmarks/gate_power.py draws the whole picture."""

    @pytest.mark.parametrize("noise", [0.005, 0.02, 0.05, 0.2])
    def test_engines_as_quick_as_each_other_next_to_never_fail(self, noise: float) -> None:
        assert fail_rate(1.0, noise) <= 0.02

    @pytest.mark.parametrize("noise", [0.005, 0.02, 0.1])
    def test_one_slower_by_just_the_tolerance_fails_as_often_as_the_interval_is_wrong(
        self, noise: float
    ) -> None:
        assert fail_rate(1 - TOLERANCE, noise) == pytest.approx(0.025, abs=0.02)

    @pytest.mark.parametrize(("ratio", "noise"), [(0.92, 0.01), (0.9, 0.02), (0.8, 0.05)])
    def test_one_that_is_clearly_slower_fails(self, ratio: float, noise: float) -> None:
        assert fail_rate(ratio, noise) >= 0.8
