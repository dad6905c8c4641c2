"""The gate, put before engines whose faults are known.

`Model` stands for a model of which all three answers are known: in fp32, in 16 bits, and by an
engine as far away as the test wants it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.canonical import canonical_json
from trtforge.gates.correctness import Verdict, compare, correctness_jobs, judge, read_logits

STEPS, VOCAB = 8, 300
NOISE = 0.01
FACTOR = 2.0

Array = npt.NDArray[np.float32]


class Model:
    """fp32 logits with standard deviation 1, and the 16-bit model's, `NOISE` away."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.fp32 = self._random.normal(0, 1, (STEPS, VOCAB)).astype(np.float32)
        # No near ties, unless a test makes one.
        self.fp32[np.arange(STEPS), self.fp32.argmax(-1)] += 1
        self.bf16 = self.away(NOISE)

    def away(self, distance: float) -> Array:
        """Logits at an RMS distance from fp32."""
        error = self._random.normal(0, 1, self.fp32.shape)
        error *= distance / np.sqrt(np.mean(error**2))
        return (self.fp32 + error).astype(np.float32)

    def tie(self, step: int, gap: float) -> tuple[int, int]:
        """Make two tokens of a step the likeliest, `gap` apart in fp32; returns both."""
        first, second = (int(t) for t in np.argsort(self.fp32[step])[:-3:-1])
        self.bf16[step, second] += self.fp32[step, first] - gap - self.fp32[step, second]
        self.fp32[step, second] = self.fp32[step, first] - gap
        return first, second

    def verdict(
        self, engine: Array, tokens: list[int] | None = None, factor: float = FACTOR
    ) -> Verdict:
        """The gate's word on an engine with these logits, and greedy tokens unless given."""
        return compare(
            "prompt-0",
            0,
            engine_tokens=engine.argmax(-1).tolist() if tokens is None else tokens,
            engine_logits=engine,
            reference_tokens=self.bf16.argmax(-1).tolist(),
            reference_logits=self.bf16,
            fp32_logits=self.fp32,
            rounding_factor=factor,
        )


@pytest.fixture
def model() -> Model:
    return Model()


class TestPasses:
    def test_the_original_model_itself(self, model: Model) -> None:
        verdict = model.verdict(model.bf16)
        assert verdict.passed
        assert verdict.reason == ""
        assert verdict.agreed_tokens == verdict.compared_tokens == STEPS
        assert verdict.rounding_ratio == verdict.worst_step_ratio == 1.0
        assert not verdict.near_tie

    def test_an_engine_closer_to_fp32_than_the_original(self, model: Model) -> None:
        verdict = model.verdict(model.away(NOISE / 10))
        assert verdict.passed
        assert verdict.rounding_ratio == pytest.approx(0.1, rel=0.01)

    def test_fp32_itself(self, model: Model) -> None:
        assert model.verdict(model.fp32).rounding_ratio == 0.0

    @given(st.integers(0, 1000), st.floats(0.1, 1.6))
    def test_an_engine_as_noisy_as_the_original_up_to_the_factor(
        self, seed: int, noisier: float
    ) -> None:
        model = Model(seed)
        verdict = model.verdict(model.away(noisier * NOISE))
        assert verdict.passed, verdict
        assert verdict.rounding_ratio == pytest.approx(noisier, rel=0.01)

    def test_an_engine_where_the_original_was_exact_by_luck(self, model: Model) -> None:
        engine = model.away(NOISE)
        model.bf16[3] = model.fp32[3]
        assert model.verdict(engine).passed

    def test_a_model_without_rounding_noise_whose_engine_has_next_to_none(
        self, model: Model
    ) -> None:
        model.bf16 = model.fp32.copy()
        assert model.verdict(model.away(1e-4)).passed
        assert not model.verdict(model.away(1e-2)).passed

    def test_a_near_tie_decided_the_other_way(self, model: Model) -> None:
        first, second = model.tie(3, gap=0.01)
        model.bf16[3, first], model.bf16[3, second] = model.fp32[3, first], model.fp32[3, second]
        engine = model.away(NOISE)
        engine[3, second] = engine[3, first] + 0.001
        verdict = model.verdict(engine)
        assert verdict.passed
        assert verdict.near_tie
        assert (verdict.agreed_tokens, verdict.compared_tokens) == (3, STEPS)

    def test_a_tie_that_the_original_lost_to_rounding_and_the_engine_got_right(
        self, model: Model
    ) -> None:
        first, second = model.tie(0, gap=0.005)
        model.bf16[0, second] = model.bf16[0, first] + 0.005
        verdict = model.verdict(model.fp32)
        assert verdict.passed
        assert verdict.near_tie

    def test_after_a_near_tie_the_texts_may_go_different_ways(self, model: Model) -> None:
        first, second = model.tie(2, gap=0.01)
        model.bf16[2, first], model.bf16[2, second] = model.fp32[2, first], model.fp32[2, second]
        engine = model.away(NOISE)
        engine[2, second] = engine[2, first] + 0.001
        engine[3:] = np.random.default_rng(1).normal(0, 1, engine[3:].shape)
        assert model.verdict(engine).passed


class TestFails:
    def test_a_wrong_token_with_a_clear_margin_is_named_with_the_gap(self, model: Model) -> None:
        tokens = model.bf16.argmax(-1).tolist()
        wrong = int(model.fp32[5].argsort()[-2])
        gap = model.fp32[5].max() - model.fp32[5, wrong]
        verdict = model.verdict(model.bf16, [*tokens[:5], wrong, *tokens[6:]])
        assert not verdict.passed
        assert verdict.agreed_tokens == 5
        assert verdict.reason.startswith(
            f"token 5 is {wrong} instead of {tokens[5]}, whose logit is {gap:.3f} higher in fp32"
        )

    def test_the_gap_that_rounding_explains_grows_with_the_noise_at_that_step(
        self, model: Model
    ) -> None:
        first, second = model.tie(3, gap=0.2)
        tokens = model.bf16.argmax(-1).tolist()
        tokens[3] = second if tokens[3] == first else first
        assert "rounding explains" in model.verdict(model.bf16, tokens).reason
        model.bf16[3, 0] += 0.06
        assert model.verdict(model.bf16, tokens).near_tie

    @pytest.mark.parametrize("noisier", [2.5, 10, 1000])
    def test_more_noise_than_the_factor_allows(self, model: Model, noisier: float) -> None:
        engine = model.away(noisier * NOISE)
        verdict = model.verdict(engine, model.bf16.argmax(-1).tolist())
        assert not verdict.passed
        assert "times as far from fp32" in verdict.reason
        assert "2 are allowed" in verdict.reason
        assert model.verdict(engine, model.bf16.argmax(-1).tolist(), factor=3 * noisier).passed

    @pytest.mark.parametrize("step", [0, 4, STEPS - 1])
    def test_noise_at_one_token_alone(self, model: Model, step: int) -> None:
        engine = model.bf16.copy()
        engine[step] = model.away(4 * NOISE)[step]
        verdict = model.verdict(engine)
        assert verdict.rounding_ratio is not None
        assert verdict.rounding_ratio < FACTOR
        assert verdict.worst_step_ratio == pytest.approx(4, rel=0.2)
        assert f"times at token {step}; 2 are allowed" in verdict.reason

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("where", [(0, 0), (STEPS - 1, 7)])
    def test_an_engine_whose_logits_are_not_finite(
        self, model: Model, value: float, where: tuple[int, int]
    ) -> None:
        engine = model.bf16.copy()
        engine[where] = value
        verdict = model.verdict(engine, model.bf16.argmax(-1).tolist())
        assert verdict.reason == "the engine's logits are not finite"
        assert verdict.rounding_ratio is None

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("which", ["bf16", "fp32"])
    def test_an_original_whose_logits_are_not_finite_proves_nothing(
        self, model: Model, value: float, which: str
    ) -> None:
        engine = model.fp32.copy()
        getattr(model, which)[2, 5] = value
        assert "original model's own logits are not finite" in model.verdict(engine).reason

    @pytest.mark.parametrize("length", [0, 1, STEPS - 1])
    def test_a_shorter_answer(self, model: Model, length: int) -> None:
        verdict = model.verdict(model.bf16[:length])
        assert not verdict.passed
        assert verdict.reason == (
            f"{length} tokens instead of {STEPS}" if length else "the engine gave no token"
        )

    def test_a_longer_answer(self, model: Model) -> None:
        longer = np.concatenate([model.bf16, model.bf16[:2]])
        assert model.verdict(longer).reason == f"{STEPS + 2} tokens instead of {STEPS}"

    def test_a_shorter_answer_is_not_excused_by_a_near_tie(self, model: Model) -> None:
        first, second = model.tie(3, gap=0.001)
        model.bf16[3, first], model.bf16[3, second] = model.fp32[3, first], model.fp32[3, second]
        engine = model.away(NOISE)[:5]
        engine[3, second] = engine[3, first] + 0.001
        assert model.verdict(engine).reason == f"5 tokens instead of {STEPS}"

    def test_logits_of_another_vocabulary(self, model: Model) -> None:
        verdict = model.verdict(model.bf16[:, :-20])
        assert (
            verdict.reason == f"the engine's logits are of {VOCAB - 20} tokens instead of {VOCAB}"
        )

    def test_logits_that_are_all_the_same(self, model: Model) -> None:
        model.fp32 = np.zeros_like(model.fp32)
        model.bf16 = model.fp32.copy()
        assert model.verdict(model.fp32).passed
        assert not model.verdict(model.fp32 + 1).passed

    @given(st.integers(0, 500), st.data())
    def test_the_answer_to_another_prompt(self, seed: int, data: st.DataObject) -> None:
        model = Model(seed)
        shift = data.draw(st.integers(1, STEPS - 1))
        assert not model.verdict(np.roll(model.bf16, shift, axis=0)).passed

    def test_every_verdict_can_be_kept_as_evidence(self, model: Model) -> None:
        broken = model.bf16 * np.float32(np.nan)
        for engine in (model.bf16, model.away(1.0), broken, model.bf16[:0]):
            verdict = model.verdict(engine)
            kept = json.loads(canonical_json(verdict.to_json()))
            assert Verdict(**kept) == verdict


class TestJobs:
    def test_every_prompt_is_answered_alone_and_in_ragged_batches(self) -> None:
        prompts = [[1], [2, 2], [3, 3, 3], [4], [5]]
        engine, reference = correctness_jobs(prompts, 7, max_batch_size=2)
        assert [(job["id"], job["prompts"], job["reference_ids"]) for job in engine] == [
            ("prompt-0", [[1]], ["prompt-0"]),
            ("prompt-1", [[2, 2]], ["prompt-1"]),
            ("prompt-2", [[3, 3, 3]], ["prompt-2"]),
            ("prompt-3", [[4]], ["prompt-3"]),
            ("prompt-4", [[5]], ["prompt-4"]),
            ("batch-0", [[1], [2, 2]], ["prompt-0", "prompt-1"]),
            ("batch-2", [[3, 3, 3], [4]], ["prompt-2", "prompt-3"]),
        ]
        assert [(job["id"], job["prompts"]) for job in reference] == [
            (f"prompt-{n}", [prompt]) for n, prompt in enumerate(prompts)
        ]
        for job in engine + reference:
            assert job["max_new_tokens"] == 7
            assert job["logits"] is True
            assert "stop_ids" not in job

    @pytest.mark.parametrize(("prompts", "batch"), [([[1], [2]], 1), ([[1]], 8)])
    def test_there_is_no_batch_of_one(self, prompts: list[list[int]], batch: int) -> None:
        engine, _ = correctness_jobs(prompts, 4, batch)
        assert all(len(job["prompts"]) == 1 for job in engine)
        assert len(engine) == len(prompts)

    @given(st.integers(1, 12), st.integers(1, 12))
    def test_each_job_fits_the_engine_and_points_at_its_references(
        self, count: int, batch: int
    ) -> None:
        prompts = [[n] * (n + 1) for n in range(count)]
        engine, reference = correctness_jobs(prompts, 4, batch)
        answered = {job["id"]: job["prompts"][0] for job in reference}
        for job in engine:
            assert len(job["prompts"]) <= batch
            assert [answered[i] for i in job["reference_ids"]] == job["prompts"]
        assert len({job["id"] for job in engine}) == len(engine)


class TestJudge:
    """Over the files that run drivers write."""

    PROMPTS = ([1, 2], [3], [4, 5, 6])

    @pytest.fixture
    def models(self) -> list[Model]:
        return [Model(seed) for seed in range(3)]

    def judged(
        self, directory: Path, models: list[Model], answers: dict[str, list[Array]]
    ) -> list[Verdict]:
        """Verdicts on an engine whose logits for each job are given, one array per row."""
        engine_jobs, reference_jobs = correctness_jobs(list(self.PROMPTS), STEPS, 3)
        for name in ("engine", "eager"):
            (directory / name).mkdir()
        mine = {
            job["id"]: output(directory / "engine", job["id"], answers[job["id"]])
            for job in engine_jobs
        }
        theirs = {
            job["id"]: output(directory / "eager", job["id"], [model.bf16], [model.fp32])
            for job, model in zip(reference_jobs, models, strict=True)
        }
        return judge(
            engine_jobs,
            mine,
            theirs,
            engine_logits_dir=directory / "engine",
            reference_logits_dir=directory / "eager",
            rounding_factor=FACTOR,
        )

    def answers(self, models: list[Model]) -> dict[str, list[Array]]:
        alone = {f"prompt-{n}": [model.away(NOISE)] for n, model in enumerate(models)}
        return alone | {"batch-0": [model.away(NOISE) for model in models]}

    def test_every_prompt_of_every_job_is_judged(self, tmp_path: Path, models: list[Model]) -> None:
        verdicts = self.judged(tmp_path, models, self.answers(models))
        assert [(v.job, v.prompt) for v in verdicts] == [
            ("prompt-0", 0),
            ("prompt-1", 0),
            ("prompt-2", 0),
            ("batch-0", 0),
            ("batch-0", 1),
            ("batch-0", 2),
        ]
        assert all(v.passed for v in verdicts)

    def test_a_fault_in_one_row_of_a_batch_fails_that_row_alone(
        self, tmp_path: Path, models: list[Model]
    ) -> None:
        answers = self.answers(models)
        answers["batch-0"][1] = models[1].away(5 * NOISE)
        failed = [v for v in self.judged(tmp_path, models, answers) if not v.passed]
        assert [(v.job, v.prompt) for v in failed] == [("batch-0", 1)]

    def test_rows_that_were_swapped_fail(self, tmp_path: Path, models: list[Model]) -> None:
        answers = self.answers(models)
        answers["batch-0"] = answers["batch-0"][::-1]
        failed = [v for v in self.judged(tmp_path, models, answers) if not v.passed]
        assert [(v.job, v.prompt) for v in failed] == [("batch-0", 0), ("batch-0", 2)]

    def test_logits_that_were_cut_off_are_never_taken_for_whole_ones(
        self, tmp_path: Path, models: list[Model]
    ) -> None:
        path = tmp_path / "logits"
        whole = models[0].fp32[:, None].astype("<f4").tobytes()
        path.write_bytes(whole)
        assert np.array_equal(read_logits(path, STEPS, 1)[:, 0], models[0].fp32)
        path.write_bytes(whole[:-4])
        with pytest.raises(ValueError, match="cannot reshape"):
            read_logits(path, STEPS, 1)


def output(
    directory: Path, name: str, rows: list[Array], fp32: list[Array] | None = None
) -> dict[str, Any]:
    """What a run driver says and writes about one job."""
    described: dict[str, Any] = {
        "id": name,
        "tokens": [row.argmax(-1).tolist() for row in rows],
        "step_s": [[0.1 * step for step in range(len(rows[0]))]],
    }
    for key, arrays in {"logits": rows, "logits_fp32": fp32}.items():
        if arrays is not None:
            described[key] = f"{name}.{key}"
            data = np.stack(arrays, axis=1).astype("<f4").tobytes()
            (directory / described[key]).write_bytes(data)
    return described
