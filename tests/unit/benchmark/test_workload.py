from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.benchmark.workload import TooFewPromptsError, benchmark_jobs
from trtforge.spec import BuildSpec, parse_spec


def spec(
    *, inputs: int = 8, outputs: int = 4, concurrency: tuple[int, ...] = (1, 4), **benchmark: Any
) -> BuildSpec:
    workload = {"input_tokens": inputs, "output_tokens": outputs}
    return parse_spec(
        {
            "model": {"source": "hf://org/name"},
            "engine": {"max_batch_size": 64},
            "benchmark": {"workload": workload, "concurrency": concurrency, **benchmark},
        }
    )


def all_prompts(jobs: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    return [tuple(prompt) for job in jobs for prompt in job["prompts"]]


class TestJobs:
    def test_there_is_one_per_concurrency_with_that_many_prompts(self) -> None:
        jobs = benchmark_jobs(spec(concurrency=(4, 1, 2)), 100)
        assert [(job["id"], len(job["prompts"])) for job in jobs] == [
            ("concurrency-1", 1),
            ("concurrency-2", 2),
            ("concurrency-4", 4),
        ]

    def test_every_output_token_is_generated_as_often_as_asked(self) -> None:
        (job,) = benchmark_jobs(spec(outputs=9, concurrency=(2,), warmups=2, repeats=5), 100)
        assert (job["max_new_tokens"], job["warmups"], job["repeats"]) == (9, 2, 5)
        assert not {"stop_ids", "sampling", "logits"} & set(job)


class TestPrompts:
    @given(
        st.integers(1, 30), st.integers(2, 600), st.sets(st.integers(1, 16), min_size=1, max_size=3)
    )
    def test_lengths_are_exact_ids_in_the_vocabulary_and_no_two_the_same(
        self, inputs: int, vocab_size: int, concurrency: set[int]
    ) -> None:
        asked = spec(inputs=inputs, concurrency=tuple(concurrency))
        if vocab_size**inputs < sum(concurrency):
            with pytest.raises(TooFewPromptsError) as caught:
                benchmark_jobs(asked, vocab_size)
            assert caught.value.field == "benchmark.workload.input_tokens"
            return
        prompts = all_prompts(benchmark_jobs(asked, vocab_size))
        assert {len(prompt) for prompt in prompts} == {inputs}
        assert all(0 <= token < vocab_size for token in chain.from_iterable(prompts))
        assert len(set(prompts)) == len(prompts) == sum(concurrency)

    def test_the_same_seed_gives_the_same_prompts(self) -> None:
        assert benchmark_jobs(spec(seed=3), 500) == benchmark_jobs(spec(seed=3), 500)

    def test_another_seed_gives_others(self) -> None:
        one, other = (all_prompts(benchmark_jobs(spec(seed=n), 500)) for n in (0, 1))
        assert not set(one) & set(other)

    def test_the_whole_vocabulary_is_used(self) -> None:
        (job,) = benchmark_jobs(spec(inputs=100, concurrency=(20,)), 50)
        assert set(chain.from_iterable(job["prompts"])) == set(range(50))
