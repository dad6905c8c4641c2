import json
from typing import Any

import pytest

from trtforge.benchmark.metrics import FORMULAS, Measurement, ShortOutputError, measure
from trtforge.errors import BuildError


def job(concurrency: int = 2, new_tokens: int = 3) -> dict[str, Any]:
    prompts = [[7] * 5 for _ in range(concurrency)]
    return {"id": "concurrency-2", "prompts": prompts, "max_new_tokens": new_tokens}


def measured(*repeats: list[float], concurrency: int = 2) -> Measurement:
    return measure(job(concurrency, len(repeats[0])), {"step_s": list(repeats)})


class TestFormulas:
    def test_one_repeat(self) -> None:
        # First token after 0.5 s, then two more in 1 s; two requests of three tokens in 1.5 s.
        found = measured([0.5, 0.75, 1.5])
        assert found == Measurement(
            concurrency=2,
            input_tokens=5,
            output_tokens=3,
            repeats=1,
            ttft_s=0.5,
            itl_s=0.5,
            output_tokens_per_s=4.0,
            output_tokens_per_s_min=4.0,
            output_tokens_per_s_max=4.0,
        )

    def test_of_several_repeats_the_median_and_the_range_of_throughput(self) -> None:
        found = measured([0.5, 1.0, 1.5], [0.25, 0.5, 0.75], [1.0, 2.0, 6.0])
        assert found.repeats == 3
        assert found.ttft_s == 0.5
        assert found.itl_s == 0.5
        assert found.output_tokens_per_s == 4.0
        assert found.output_tokens_per_s_min == 1.0
        assert found.output_tokens_per_s_max == 8.0

    def test_each_median_is_taken_over_its_own_values(self) -> None:
        # The repeat with the middle TTFT is neither the one with the middle ITL nor throughput.
        found = measured([0.25, 4.25], [0.5, 1.0], [1.0, 2.0], concurrency=1)
        assert (found.ttft_s, found.itl_s, found.output_tokens_per_s) == (0.5, 1.0, 1.0)

    def test_throughput_grows_with_concurrency_and_latency_does_not(self) -> None:
        one, eight = (measured([0.5, 1.0], concurrency=n) for n in (1, 8))
        assert eight.output_tokens_per_s == 8 * one.output_tokens_per_s
        assert (eight.ttft_s, eight.itl_s) == (one.ttft_s, one.itl_s)

    def test_each_is_written_down(self) -> None:
        fields = Measurement.__dataclass_fields__
        assert set(FORMULAS) == {"ttft_s", "itl_s", "output_tokens_per_s"} <= set(fields)


@pytest.mark.parametrize("times", [[0.5, 1.0], [0.5, 1.0, 1.5, 2.0], []])
def test_an_output_of_another_length_is_refused(times: list[float]) -> None:
    with pytest.raises(ShortOutputError, match=f"{len(times)} tokens instead of 3") as caught:
        measure(job(), {"step_s": [[0.5, 1.0, 1.5], times]})
    assert isinstance(caught.value, BuildError)
    assert "concurrency-2" in str(caught.value)


def test_a_measurement_survives_json() -> None:
    found = measured([0.1, 0.2, 0.4], [0.2, 0.3, 0.5])
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found
