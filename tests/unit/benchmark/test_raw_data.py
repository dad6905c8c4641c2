"""Raw data: everything a report says can be computed from it again."""

import json
from pathlib import Path
from typing import Any

import pytest

from trtforge.benchmark.collect import collect
from trtforge.benchmark.metrics import Terms
from trtforge.benchmark.sample import RawDataError, Sample, read_samples, write_samples
from trtforge.benchmark.summary import summarise
from trtforge.benchmark.workload import Wave


def wave(concurrency: int, repeat: int = 0, number: int = 0, new_tokens: int = 2) -> Wave:
    job = {
        "id": f"load-c{concurrency}-r{repeat}-w{number}",
        "prompts": [[1, 2, 3]] * concurrency,
        "max_new_tokens": new_tokens,
    }
    return Wave(concurrency, repeat, number, job)


def output(of: Wave, start_s: float, *step_s: float, **more: Any) -> dict[str, Any]:
    tokens = [[7] * len(step_s) for _ in of.job["prompts"]]
    told = {"id": of.job["id"], "start_s": [start_s], "step_s": [list(step_s)], "tokens": tokens}
    return {**told, **more}


def collected(*pairs: tuple[Wave, dict[str, Any] | None], timeout_s: float = 60) -> list[Sample]:
    waves, outputs = [w for w, _ in pairs], [o for _, o in pairs if o is not None]
    return collect(waves, outputs, who="engine", workload="chat", timeout_s=timeout_s)


class TestCollecting:
    def test_each_request_of_a_wave_is_one_line_on_the_clock_of_its_repeat(self) -> None:
        first, second = wave(2, number=0), wave(2, number=1)
        # The process's clock began long ago; half a second passed between the waves.
        found = collected(
            (first, output(first, 100.0, 0.5, 1.0)), (second, output(second, 101.5, 0.25, 0.75))
        )
        assert [(s.request, s.start_s, s.token_s) for s in found] == [
            (0, 0.0, (0.5, 1.0)),
            (1, 0.0, (0.5, 1.0)),
            (2, 1.5, (1.75, 2.25)),
            (3, 1.5, (1.75, 2.25)),
        ]
        assert {(s.input_tokens, s.output_tokens, s.status) for s in found} == {(3, 2, "ok")}

    def test_where_the_runtime_times_each_request_that_is_taken(self) -> None:
        load = wave(2)
        told = output(load, 0.0, 0.5, 1.0, request_s=[[[0.25, 0.75], [0.5, 1.0]]])
        assert [s.token_s for s in collected((load, told))] == [(0.25, 0.75), (0.5, 1.0)]

    def test_what_went_wrong_is_counted_and_not_dropped(self) -> None:
        short, late, lost, good = (wave(1, repeat=n) for n in range(4))
        found = collected(
            (short, output(short, 0.0, 0.5)),
            (late, output(late, 0.0, 1.0, 61.0)),
            (lost, None),
            (good, output(good, 0.0, 0.5, 1.0)),
        )
        assert [s.status for s in found] == ["short", "timed-out", "failed", "ok"]
        (point,) = summarise(found).points
        assert point.requests == 4
        assert point.counts == {"ok": 1, "short": 1, "failed": 1, "timed-out": 1}
        # Their times say nothing.
        assert point.distributions["ttft_s"].n == 1


def samples() -> list[Sample]:
    return [
        Sample(who, "chat", c, repeat, r, 0.0, (0.5 * f, 0.75 * f, (1 + repeat / 8) * f), 4, 3)
        for who, f in (("engine", 1), ("eager", 4))
        for c in (1, 2)
        for repeat in range(3)
        for r in range(c)
    ]


class TestFiles:
    def test_the_summary_computed_again_is_the_same_to_the_last_bit(self, tmp_path: Path) -> None:
        terms = Terms(ttft_s=0.5, hourly_price=2.0)
        write_samples(tmp_path / "requests.jsonl", samples())
        with (tmp_path / "requests.jsonl").open() as lines:
            again = read_samples(lines)
        assert again == samples()
        kept = json.loads(json.dumps(summarise(samples(), terms).to_json()))
        assert summarise(again, terms).to_json() == kept

    def test_a_line_is_one_request_with_everything_in_it(self) -> None:
        line = samples()[0].to_line()
        assert line.endswith("}\n")
        assert set(json.loads(line)) == {
            "who", "workload", "concurrency", "repeat", "request", "start_s", "token_s",
            "input_tokens", "output_tokens", "status",
        }  # fmt: skip

    def test_lines_of_the_first_version_are_read(self) -> None:
        lines = [
            '{"who": "engine", "id": "prompt-0", "step_s": [[0.1, 0.9]], "tokens": [[1, 2]]}',
            '{"who": "engine", "id": "concurrency-2", "step_s": [[0.5, 1.0], [0.25, 0.5]]}',
        ]
        found = read_samples(lines)
        assert [(s.repeat, s.request, s.token_s) for s in found] == [
            (0, 0, (0.5, 1.0)),
            (0, 1, (0.5, 1.0)),
            (1, 0, (0.25, 0.5)),
            (1, 1, (0.25, 0.5)),
        ]
        (point,) = summarise(found).points
        assert point.intervals["output_tokens_per_s"].mean == (4 / 1.0 + 4 / 0.5) / 2

    @pytest.mark.parametrize("line", ["{", "[]", "7", '{"token_s": [1]}', '{"token_s": "x"}', "{}"])
    def test_anything_else_is_refused_with_its_line(self, line: str) -> None:
        with pytest.raises(RawDataError, match=r"line 2 of requests\.jsonl"):
            read_samples([samples()[0].to_line(), line])


class TestSummary:
    def test_intervals_are_over_repeats_and_distributions_over_requests(self) -> None:
        point = summarise(samples()).find("engine", 2)
        assert point is not None
        assert (point.repeats, point.requests) == (3, 6)
        assert point.distributions["ttft_s"].n == 6
        assert point.distributions["itl_pooled_s"].n == 12
        rate = point.intervals["output_tokens_per_s"]
        assert rate.n == 3
        assert rate.mean == pytest.approx((6 / 1 + 6 / 1.125 + 6 / 1.25) / 3)

    def test_one_repeat_leaves_the_ends_of_an_interval_open(self) -> None:
        once = [s for s in samples() if s.repeat == 0]
        told = summarise(once).to_json()["points"][0]["intervals"]["ttft_s"]
        assert told == {"mean": 0.5, "low": None, "high": None, "n": 1}

    def test_sides_and_concurrencies_are_kept_apart(self) -> None:
        told = [(p.who, p.concurrency) for p in summarise(samples()).points]
        assert told == [("engine", 1), ("engine", 2), ("eager", 1), ("eager", 2)]
