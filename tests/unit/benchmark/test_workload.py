from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.benchmark.workload import (
    PromptsFileError,
    TooFewPromptsError,
    benchmark_jobs,
    sweep,
)
from trtforge.spec import BuildSpec, SpecError, Workload, parse_spec


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


class TestSweep:
    def test_repeats_go_through_all_concurrencies_every_other_one_backwards(self) -> None:
        waves = sweep(spec(concurrency=(1, 2, 4), repeats=3), 500)
        assert [(w.repeat, w.concurrency) for w in waves] == [
            (0, 1), (0, 2), (0, 4), (1, 4), (1, 2), (1, 1), (2, 1), (2, 2), (2, 4),
        ]  # fmt: skip

    def test_requests_are_rounded_up_to_whole_waves(self) -> None:
        waves = sweep(spec(concurrency=(1, 4), repeats=1, requests=6), 500)
        assert [len(w.job["prompts"]) for w in waves] == [1] * 6 + [4, 4]

    def test_no_two_requests_of_a_run_have_the_same_prompt(self) -> None:
        waves = sweep(spec(concurrency=(1, 4), repeats=3, requests=8), 500)
        prompts = all_prompts([w.job for w in waves])
        assert len(set(prompts)) == len(prompts) == 3 * (8 + 8)
        assert {len(prompt) for prompt in prompts} == {8}

    @pytest.mark.parametrize(("in_turns", "warm"), [(False, [2, 0, 0]), (True, [2, 2, 2])])
    def test_warm_ups_come_first_wherever_a_process_begins(
        self, in_turns: bool, warm: list[int]
    ) -> None:
        waves = sweep(spec(concurrency=(4,), repeats=3, warmups=2, in_turns=in_turns), 500)
        assert [w.job["warmups"] for w in waves] == warm

    def test_every_token_is_generated_once(self) -> None:
        for wave in sweep(spec(outputs=9, concurrency=(2,)), 100):
            assert (wave.job["max_new_tokens"], wave.job["repeats"]) == (9, 1)
            assert not {"stop_ids", "sampling", "logits"} & set(wave.job)

    def test_too_few_different_prompts_are_refused(self) -> None:
        with pytest.raises(TooFewPromptsError):
            sweep(spec(inputs=1, concurrency=(1, 4), requests=50), 100)


class TestPromptsOfYourOwn:
    def asked(self, path: Path, **benchmark: Any) -> BuildSpec:
        return parse_spec(
            {
                "model": {"source": "hf://org/name"},
                "engine": {"max_batch_size": 2, "max_input_len": 6, "max_seq_len": 10},
                "benchmark": {
                    "workload": {"prompts_file": str(path), "output_tokens": 5},
                    "concurrency": [2],
                    **benchmark,
                },
            }
        )

    def test_they_are_taken_in_order_and_again_from_the_beginning(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text('{"token_ids": [1, 2]}\n\n{"token_ids": [3]}\n{"token_ids": [4, 4, 4]}\n')
        waves = sweep(self.asked(path, repeats=2), 9)
        assert [w.job["prompts"] for w in waves] == [[[1, 2], [3]], [[4, 4, 4], [1, 2]]]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "there is no prompt in it"),
            ("{", "line 1 is not JSON"),
            ("7", "line 1 is not a JSON object"),
            ('{"text": "x"}', "line 1 has neither prompt nor token_ids"),
            ('{"token_ids": [9]}', "something else than token ids"),
            ('{"token_ids": [true]}', "something else than token ids"),
            ('{"prompt": "Hello"}', "the model has no tokenizer"),
            # max_seq_len 10 leaves 5 tokens to the prompt.
            ('{"token_ids": [1]}\n{"token_ids": [1, 1, 1, 1, 1, 1]}', "prompt in line 2 has 6"),
            ('{"token_ids": []}', "prompt in line 1 has 0"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_never_clipped(
        self, tmp_path: Path, text: str, problem: str
    ) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(text)
        with pytest.raises(PromptsFileError, match=problem) as caught:
            sweep(self.asked(path), 9)
        assert caught.value.field == "benchmark.workload.prompts_file"

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(PromptsFileError, match="cannot be read"):
            sweep(self.asked(tmp_path / "none.jsonl"), 9)

    def test_batches_are_compared_on_prompts_of_one_length(self, tmp_path: Path) -> None:
        (job,) = benchmark_jobs(self.asked(tmp_path / "none.jsonl"), 9)
        assert [len(prompt) for prompt in job["prompts"]] == [5, 5]


class TestNames:
    @pytest.mark.parametrize(
        ("name", "lengths"),
        [("smoke", (128, 32)), ("chat", (1000, 200)), ("summary", (2048, 128)),
         ("standard", (1000, 1000))],
    )  # fmt: skip
    def test_a_name_stands_for_its_lengths(self, name: str, lengths: tuple[int, int]) -> None:
        load = Workload.model_validate(name)
        assert (load.input_tokens, load.output_tokens) == lengths
        assert load.label == name
        assert Workload.model_validate(load.model_dump(mode="json")) == load

    def test_lengths_that_contradict_the_name_are_refused(self) -> None:
        with pytest.raises(SpecError, match="the workload chat has 1000"):
            parse_spec(
                {
                    "model": {"source": "hf://org/name"},
                    "benchmark": {"workload": {"name": "chat", "input_tokens": 7}},
                }
            )

    @pytest.mark.parametrize("name", ["chat", "summary", "standard"])
    def test_an_engine_that_is_too_small_is_refused(self, name: str) -> None:
        with pytest.raises(SpecError, match="the engine takes"):
            parse_spec({"model": {"source": "hf://org/name"}, "benchmark": {"workload": name}})
