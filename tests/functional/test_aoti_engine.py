"""A real engine, compiled once for this file, against the original model in eager PyTorch."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from trtforge.checkpoint import convert  # noqa: E402
from trtforge.engines.aoti.backend import AotiBackend  # noqa: E402
from trtforge.engines.aoti.runtime import Engine, Generation, Sampling  # noqa: E402
from trtforge.engines.base import BuildOutcome, Toolchain  # noqa: E402
from trtforge.engines.driver_main import DriverError  # noqa: E402
from trtforge.engines.driver_process import DriverFailedError  # noqa: E402
from trtforge.engines.reference.runner import run_reference  # noqa: E402
from trtforge.files import describe_directory  # noqa: E402
from trtforge.gates.correctness import Verdict, compare, correctness_jobs, judge  # noqa: E402
from trtforge.progress import Progress, ignore  # noqa: E402
from trtforge.spec import EngineSpec  # noqa: E402

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hf-models"
SPEC = EngineSpec(
    max_batch_size=3,
    max_input_len=24,
    max_seq_len=48,
    max_num_tokens=48,
    options={"device": "cpu"},
)
VOCAB = 259
ROUNDING_FACTOR = 2.0
BACKEND = AotiBackend()


@dataclass(frozen=True)
class Built:
    model_dir: Path
    checkpoint_dir: Path
    engine_dir: Path
    cache: Path
    toolchain: Toolchain
    outcome: BuildOutcome
    told: list[Progress]


def sharpened(name: str, directory: Path) -> Path:
    """A copy of a fixture model in which attention and the layers matter.

    The fixtures' weights are as small as training begins with: attention is all but uniform then,
    and even a wrong rotary embedding changes less than rounding does.
    """
    model_dir = Path(shutil.copytree(FIXTURES / name, directory / name))
    weights = load_file(model_dir / "model.safetensors")
    for key, weight in weights.items():
        if key.endswith("_proj.weight"):
            weights[key] = weight * 8
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    return model_dir


def build(
    directory: Path, model: str, spec: EngineSpec = SPEC, cache_in: Path | None = None
) -> Built:
    """Convert and compile one of the fixture models below `directory`."""
    model_dir = sharpened(model, directory)
    checkpoint_dir, work_dir = directory / "checkpoint", directory / "work"
    work_dir.mkdir(parents=True)
    convert(model_dir, checkpoint_dir)
    toolchain = BACKEND.probe(spec, work_dir)
    told: list[Progress] = []
    outcome = BACKEND.build(
        spec,
        toolchain=toolchain,
        checkpoint_dir=checkpoint_dir,
        engine_dir=directory / "engine",
        cache_in=cache_in,
        cache_out=directory / "model.cache",
        work_dir=work_dir,
        on_progress=told.append,
        on_log=lambda _: None,
    )
    return Built(
        model_dir,
        checkpoint_dir,
        directory / "engine",
        directory / "model.cache",
        toolchain,
        outcome,
        told,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("aoti"), "llama_tied")


@pytest.fixture(scope="module")
def engine(built: Built) -> Engine:
    return Engine(built.engine_dir)


class Original:
    """The Hugging Face model in bfloat16 and in fp32, eager."""

    def __init__(self, model_dir: Path) -> None:
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._narrow = load(model_dir, dtype=torch.bfloat16).eval()
        self._wide = load(model_dir, dtype=torch.float32).eval()

    @torch.inference_mode()
    def verdict(self, prompt: Sequence[int], answer: Generation, row: int) -> Verdict:
        """Compare row `row` of an engine's answer with this model's answer to `prompt`."""
        steps = len(answer.logits)
        tokens, logits, past, ids = [], [], None, torch.tensor([list(prompt)])
        for _ in range(steps):
            output = self._narrow(ids, past_key_values=past, use_cache=True)
            past = output.past_key_values
            logits.append(output.logits[:, -1].float())
            ids = logits[-1].argmax(-1, keepdim=True)
            tokens.append(int(ids))
        wide = self._wide(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, -steps:]
        return compare(
            "answer",
            row,
            engine_tokens=answer.tokens[row],
            engine_logits=np.stack([step[row].numpy() for step in answer.logits]),
            reference_tokens=tokens,
            reference_logits=torch.cat(logits).numpy(),
            fp32_logits=wide.numpy(),
            rounding_factor=ROUNDING_FACTOR,
        )


@pytest.fixture(scope="module")
def original(built: Built) -> Original:
    return Original(built.model_dir)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    source = np.random.default_rng([seed, length])
    return [int(token) for token in source.integers(0, VOCAB, length)]


def answers_like(
    original: Original, engine: Engine, prompts: list[list[int]], new_tokens: int
) -> None:
    answer = engine.generate(prompts, new_tokens, keep_logits=True)
    assert [len(tokens) for tokens in answer.tokens] == [new_tokens] * len(prompts)
    for row, prompt in enumerate(prompts):
        verdict = original.verdict(prompt, answer, row)
        assert verdict.passed, verdict


class TestBuild:
    def test_a_first_build_is_cold_and_says_what_it_compiled(self, built: Built) -> None:
        assert built.outcome.cache == "cold"
        assert {step["name"] for step in built.outcome.steps} == {
            *("prefill", "decode_one", "head_one", "decode_few", "head_few")
        }
        assert all(step["seconds"] > 0 and not step["cached"] for step in built.outcome.steps)
        assert built.outcome.warnings == ()
        assert (built.told[0].done, built.told[-1].done, built.told[-1].total) == (0, 5, 5)

    def test_the_engine_directory_holds_what_was_described(self, built: Built) -> None:
        assert tuple(describe_directory(built.engine_dir)) == built.outcome.files
        assert [f.path for f in built.outcome.files] == [
            *("config.json", "rank0.pt2", "rank0.safetensors")
        ]

    def test_the_configuration_in_effect_is_the_one_asked_for(self, built: Built) -> None:
        config = json.loads((built.engine_dir / "config.json").read_text())
        assert config["build_config"] == built.outcome.effective
        assert config["version"] == built.toolchain.backend_version == torch.__version__
        for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens"):
            assert built.outcome.effective[name] == getattr(SPEC, name)
        # 3 layers of keys and values, 2 heads of 16 numbers in 2 bytes, and a slot to spare.
        assert built.outcome.effective["kv_cache_bytes_per_sequence"] == 3 * 2 * 2 * 16 * 2 * 49

    def test_the_weights_are_the_checkpoints(self, built: Built) -> None:
        mine = built.engine_dir / "rank0.safetensors"
        assert mine.read_bytes() == (built.checkpoint_dir / "rank0.safetensors").read_bytes()

    def test_a_second_build_is_warm_and_gives_the_same_engine(
        self, built: Built, engine: Engine, tmp_path: Path
    ) -> None:
        again = build(tmp_path, "llama_tied", cache_in=built.cache)
        assert again.outcome.cache == "warm"
        assert all(step["cached"] for step in again.outcome.steps)
        assert again.cache.read_bytes() == built.cache.read_bytes()
        first, second = ({f.path: f for f in b.outcome.files} for b in (built, again))
        assert first["config.json"] == second["config.json"]
        assert abs(first["rank0.pt2"].size_bytes - second["rank0.pt2"].size_bytes) < 1000
        mine, theirs = (
            e.generate([prompt_of(9)], 8, keep_logits=True)
            for e in (engine, Engine(again.engine_dir))
        )
        assert mine.tokens == theirs.tokens
        assert all(torch.equal(a, b) for a, b in zip(mine.logits, theirs.logits, strict=True))

    def test_an_engine_directory_that_exists_is_left_alone(
        self, built: Built, tmp_path: Path
    ) -> None:
        (tmp_path / "engine").mkdir()
        (tmp_path / "engine" / "mine").write_text("")
        with pytest.raises(DriverFailedError, match="FileExistsError"):
            build(tmp_path, "llama_tied", cache_in=built.cache)
        assert [p.name for p in (tmp_path / "engine").iterdir()] == ["mine"]

    @pytest.mark.slow
    def test_a_corrupt_cache_costs_a_cold_build_and_is_reported(
        self, original: Original, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.cache").write_bytes(b"PK\x03\x04 and then nothing sensible")
        spec = SPEC.model_copy(update={"max_batch_size": 1})
        again = build(tmp_path, "llama_tied", spec, cache_in=tmp_path / "bad.cache")
        assert again.outcome.cache == "cold"
        assert "unreadable cache" in again.outcome.warnings[0]
        answers_like(original, Engine(again.engine_dir), [prompt_of(9)], 12)

    @pytest.mark.slow
    def test_another_batch_size_reuses_the_graphs_that_do_not_depend_on_it(
        self, built: Built, original: Original, tmp_path: Path
    ) -> None:
        spec = SPEC.model_copy(update={"max_batch_size": 6})
        larger = build(tmp_path, "llama_tied", spec, cache_in=built.cache)
        assert larger.outcome.cache == "partly"
        assert {step["name"]: step["cached"] for step in larger.outcome.steps} == {
            "prefill": False,
            "decode_one": True,
            "head_one": True,
            "decode_few": False,
            "head_few": False,
            "decode": False,
            "head": False,
        }
        # One graph for one sequence, one for up to four, and one for more.
        engine = Engine(larger.engine_dir)
        for lengths in ((9,), (3, 12), (5, 5, 5, 1), (1, 24, 3, 8, 2), (7, 7, 7, 7, 7, 7)):
            answers_like(original, engine, [prompt_of(n) for n in lengths], 12)

    def test_another_toolchain_reuses_nothing(self, built: Built) -> None:
        other = replace(built.toolchain, cpu="x86_64 avx512f")
        assert other.key() != built.toolchain.key()


class TestAnswers:
    @pytest.mark.parametrize("length", [1, 2, 7, 16, 23, 24])
    def test_one_prompt(self, original: Original, engine: Engine, length: int) -> None:
        answers_like(original, engine, [prompt_of(length)], 16)

    @pytest.mark.parametrize("batch", [2, 3])
    def test_a_batch_of_equal_prompts(self, original: Original, engine: Engine, batch: int) -> None:
        answers_like(original, engine, [prompt_of(8, seed) for seed in range(batch)], 12)

    @pytest.mark.parametrize("lengths", [(1, 16), (16, 1), (3, 9, 5), (1, 2, 16), (7, 1, 7)])
    def test_a_ragged_batch(
        self, original: Original, engine: Engine, lengths: tuple[int, ...]
    ) -> None:
        answers_like(original, engine, [prompt_of(n) for n in lengths], 12)

    @pytest.mark.parametrize("lengths", [(24, 24, 24), (24, 3, 20), (17, 17, 1)])
    def test_a_batch_whose_prompts_do_not_fit_into_one_forward_pass(
        self, original: Original, engine: Engine, lengths: tuple[int, ...]
    ) -> None:
        assert len(lengths) * max(lengths) > SPEC.max_num_tokens
        answers_like(original, engine, [prompt_of(n) for n in lengths], 12)

    @pytest.mark.parametrize("lengths", [(24,), (1,), (24, 1), (10, 24, 17)])
    def test_up_to_the_last_place_of_a_sequence(
        self, original: Original, engine: Engine, lengths: tuple[int, ...]
    ) -> None:
        new_tokens = SPEC.max_seq_len - max(lengths)
        answers_like(original, engine, [prompt_of(n) for n in lengths], new_tokens)

    def test_most_of_what_it_says_is_what_the_original_says(
        self, original: Original, engine: Engine
    ) -> None:
        # Near ties excuse a difference, and a model this small has many: not so many that the
        # answers would be different texts.
        agreed = 0
        for seed in range(10):
            answer = engine.generate([prompt_of(12, seed)], 12, keep_logits=True)
            agreed += original.verdict(prompt_of(12, seed), answer, 0).agreed_tokens
        assert agreed > 10 * 12 / 2

    def test_one_call_leaves_nothing_behind_for_the_next(self, engine: Engine) -> None:
        first = engine.generate([prompt_of(9)], 12)
        engine.generate([prompt_of(24, 5)] * 3, 24)
        assert engine.generate([prompt_of(9)], 12).tokens == first.tokens

    def test_times_grow_and_there_is_one_for_each_token(self, engine: Engine) -> None:
        answer = engine.generate([prompt_of(9)], 12)
        assert len(answer.step_s) == 12
        assert answer.step_s == sorted(answer.step_s)
        assert answer.step_s[0] > 0
        assert answer.logits == []


class TestFaults:
    """The gate must see through an engine that is only a little wrong."""

    @pytest.fixture
    def copy(self, built: Built, tmp_path: Path) -> Path:
        return Path(shutil.copytree(built.engine_dir, tmp_path / "engine"))

    def fails(self, original: Original, engine_dir: Path) -> bool:
        prompts = [prompt_of(16), prompt_of(5), prompt_of(24)]
        answer = Engine(engine_dir).generate(prompts, 12, keep_logits=True)
        verdicts = [original.verdict(p, answer, row) for row, p in enumerate(prompts)]
        return not all(verdict.passed for verdict in verdicts)

    def test_a_copy_without_a_fault_passes(self, original: Original, copy: Path) -> None:
        assert not self.fails(original, copy)

    @pytest.mark.parametrize("base", [5000.0, 9000.0, 500000.0])
    def test_another_rotary_base(self, original: Original, copy: Path, base: float) -> None:
        config = json.loads((copy / "config.json").read_text())
        assert config["pretrained_config"]["rotary_base"] == 10000.0
        config["pretrained_config"]["rotary_base"] = base
        (copy / "config.json").write_text(json.dumps(config))
        assert self.fails(original, copy)

    @pytest.mark.parametrize(
        "name", ["attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj"]
    )
    def test_the_weights_of_two_layers_swapped(
        self, original: Original, copy: Path, name: str
    ) -> None:
        one, two = (f"transformer.layers.{n}.{name}.weight" for n in (0, 1))
        self.rewrite(copy, lambda w: w.update({one: w[two], two: w[one]}))
        assert self.fails(original, copy)

    def test_a_matrix_a_quarter_too_large(self, original: Original, copy: Path) -> None:
        name = "transformer.layers.2.mlp.proj.weight"
        self.rewrite(copy, lambda w: w.update({name: w[name] * 1.25}))
        assert self.fails(original, copy)

    def test_one_key_value_head_in_place_of_the_other(self, original: Original, copy: Path) -> None:
        name = "transformer.layers.1.attention.qkv.weight"

        def swap_keys(weights: dict[str, Any]) -> None:
            rows = weights[name].clone()
            rows[64:80], rows[80:96] = weights[name][80:96], weights[name][64:80]
            weights[name] = rows

        self.rewrite(copy, swap_keys)
        assert self.fails(original, copy)

    @staticmethod
    def rewrite(engine_dir: Path, change: Callable[[dict[str, Any]], None]) -> None:
        weights = load_file(engine_dir / "rank0.safetensors")
        change(weights)
        save_file(
            {k: v.contiguous().clone() for k, v in weights.items()},
            engine_dir / "rank0.safetensors",
        )


class TestStopIds:
    def test_a_stop_id_ends_the_answer_and_is_kept(self, engine: Engine) -> None:
        (whole,) = engine.generate([prompt_of(9)], 20).tokens
        stop = whole[6]
        answer = engine.generate([prompt_of(9)], 20, stop_ids=[stop])
        assert answer.tokens == [whole[: whole.index(stop) + 1]]
        assert len(answer.step_s) == len(answer.tokens[0])

    def test_in_a_batch_the_others_go_on_unchanged(self, engine: Engine) -> None:
        prompts = [prompt_of(9), prompt_of(5)]
        whole = engine.generate(prompts, 12).tokens
        stop = next(t for t in whole[0] if t not in whole[1])
        answer = engine.generate(prompts, 12, stop_ids=[stop])
        assert answer.tokens == [whole[0][: whole[0].index(stop) + 1], whole[1]]
        assert len(answer.step_s) == 12


class TestSampling:
    def sample(self, engine: Engine, **how: Any) -> list[int]:
        return engine.generate([prompt_of(9)], 24, sampling=Sampling(**how)).tokens[0]

    def test_the_same_seed_gives_the_same_answer_and_another_another(self, engine: Engine) -> None:
        one, same, other = (self.sample(engine, temperature=1.0, seed=n) for n in (1, 1, 2))
        assert one == same
        assert one != other

    @pytest.mark.parametrize(
        "how", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}, {"top_k": 1, "top_p": 0.5}]
    )
    def test_what_leaves_one_candidate_is_greedy(self, engine: Engine, how: dict[str, Any]) -> None:
        greedy = self.sample(engine)
        assert self.sample(engine, **({"temperature": 1.0, "seed": 3} | how)) == greedy

    @pytest.mark.parametrize("top_k", [2, 5])
    def test_top_k_takes_tokens_from_the_k_likeliest(self, engine: Engine, top_k: int) -> None:
        answer = engine.generate(
            [prompt_of(9)],
            24,
            sampling=Sampling(temperature=5.0, top_k=top_k, seed=1),
            keep_logits=True,
        )
        ranks = [
            int((logits[0] > logits[0, token]).sum())
            for token, logits in zip(answer.tokens[0], answer.logits, strict=True)
        ]
        assert max(ranks) == top_k - 1

    def test_top_p_takes_tokens_from_the_likeliest_that_make_up_p(self, engine: Engine) -> None:
        how = Sampling(temperature=1.0, top_p=0.3, seed=1)
        answer = engine.generate([prompt_of(9)], 24, sampling=how, keep_logits=True)
        for token, logits in zip(answer.tokens[0], answer.logits, strict=True):
            chances = logits[0].softmax(-1)
            assert float(chances[chances > chances[token]].sum()) < 0.3

    @pytest.mark.parametrize(
        "how",
        [
            {"temperature": -1.0},
            {"temperature": math.nan},
            {"top_k": -1},
            {"top_p": 0.0},
            {"top_p": 1.5},
            {"top_p": math.nan},
        ],
    )
    def test_what_chooses_nothing_is_refused(self, how: dict[str, Any]) -> None:
        with pytest.raises(DriverError, match="no way to choose a token") as caught:
            Sampling(**how)
        assert caught.value.cause == "bad-sampling"


class TestLimits:
    @pytest.mark.parametrize(
        ("prompts", "new_tokens", "cause", "problem"),
        [
            ([[1]] * 4, 1, "limit-exceeded", "4 prompts in one batch, .* max_batch_size 3"),
            ([[1] * 25], 1, "limit-exceeded", "25 tokens in a prompt, .* max_input_len 24"),
            ([[1] * 24], 25, "limit-exceeded", "49 tokens in a sequence .* max_seq_len 48"),
            ([[1], [1] * 20], 29, "limit-exceeded", r"20 of prompt and 29 new"),
            ([[1, VOCAB]], 1, "token-out-of-range", "token id 259 .* 0 to 258"),
            ([[1], [5, -1]], 1, "token-out-of-range", "token id -1 .* 0 to 258"),
            ([[1], []], 1, "empty-request", "empty prompt"),
            ([], 1, "empty-request", "empty prompt"),
            ([[1]], 0, "empty-request", "no token asked for"),
        ],
    )
    def test_what_the_engine_was_not_built_for_is_refused(
        self, engine: Engine, prompts: list[list[int]], new_tokens: int, cause: str, problem: str
    ) -> None:
        with pytest.raises(DriverError, match=problem) as caught:
            engine.generate(prompts, new_tokens)
        assert caught.value.cause == cause
        assert caught.value.remedy

    def test_another_pytorch_is_refused(self, built: Built, tmp_path: Path) -> None:
        shutil.copytree(built.engine_dir, tmp_path / "engine")
        path = tmp_path / "engine" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "2.0.0"}))
        with pytest.raises(DriverError, match=r"compiled by PyTorch 2\.0\.0, this is") as caught:
            Engine(tmp_path / "engine")
        assert caught.value.cause == "toolchain-mismatch"


class TestDrivers:
    """As the stages use it: engine and reference in processes of their own, judged from files."""

    @pytest.fixture
    def work_dir(self, tmp_path: Path) -> Path:
        for name in ("work", "engine", "eager"):
            (tmp_path / name).mkdir()
        return tmp_path / "work"

    def test_the_engine_passes_the_gate(self, built: Built, work_dir: Path) -> None:
        prompts = [prompt_of(n) for n in (3, 12, 24, 8)]
        engine_jobs, reference_jobs = correctness_jobs(prompts, 16, SPEC.max_batch_size)
        told: list[Progress] = []
        mine = BACKEND.run(
            SPEC,
            engine_dir=built.engine_dir,
            jobs=engine_jobs,
            logits_dir=work_dir.parent / "engine",
            work_dir=work_dir,
            on_progress=told.append,
            on_log=lambda _: None,
        )
        theirs = run_reference(
            built.model_dir,
            dtype="bfloat16",
            device="cpu",
            threads=0,
            jobs=reference_jobs,
            logits_dir=work_dir.parent / "eager",
            work_dir=work_dir,
            on_progress=ignore,
            on_log=lambda _: None,
        )
        verdicts = judge(
            engine_jobs,
            {output["id"]: output for output in mine.outputs},
            {output["id"]: output for output in theirs.outputs},
            engine_logits_dir=work_dir.parent / "engine",
            reference_logits_dir=work_dir.parent / "eager",
            rounding_factor=ROUNDING_FACTOR,
        )
        assert [(v.job, v.prompt) for v in verdicts] == [
            *((f"prompt-{n}", 0) for n in range(4)),
            *(("batch-0", n) for n in range(3)),
        ]
        assert [v for v in verdicts if not v.passed] == []
        assert told[-1].done == told[-1].total == 5
        assert mine.load_s > 0
        assert theirs.versions["torch"] == torch.__version__

    def test_warm_ups_and_repeats_are_performed(self, built: Built, work_dir: Path) -> None:
        outcome = self.run(
            built,
            work_dir,
            {"id": "a", "prompts": [[1, 2]], "max_new_tokens": 3, "warmups": 2, "repeats": 4},
        )
        (output,) = outcome.outputs
        assert [len(times) for times in output["step_s"]] == [3, 3, 3, 3]
        assert output["logits"] is None
        assert list((work_dir.parent / "engine").iterdir()) == []

    def test_sampling_and_stop_ids_reach_the_engine(self, built: Built, work_dir: Path) -> None:
        job = {"id": "a", "prompts": [prompt_of(9)], "max_new_tokens": 12}
        sampling = {"temperature": 1.0, "seed": 4}
        sampled = self.run(built, work_dir, job | {"sampling": sampling}).outputs[0]["tokens"][0]
        again = job | {"sampling": sampling, "stop_ids": [sampled[5]]}
        assert self.run(built, work_dir, again).outputs[0]["tokens"] == [
            sampled[: sampled.index(sampled[5]) + 1]
        ]

    def test_a_limit_is_reported_in_the_engines_words(self, built: Built, work_dir: Path) -> None:
        job = {"id": "a", "prompts": [[1] * 25], "max_new_tokens": 1}
        with pytest.raises(DriverFailedError, match=r"larger engine\.max_input_len") as caught:
            self.run(built, work_dir, job)
        assert caught.value.cause == "limit-exceeded"

    @staticmethod
    def run(built: Built, work_dir: Path, job: dict[str, Any]) -> Any:
        return BACKEND.run(
            SPEC,
            engine_dir=built.engine_dir,
            jobs=[job],
            logits_dir=work_dir.parent / "engine",
            work_dir=work_dir,
            on_progress=ignore,
            on_log=lambda _: None,
        )


@pytest.fixture(scope="module")
def common_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of one shape share their graphs, whatever their weights and rotary scaling."""
    return tmp_path_factory.mktemp("cache") / "model.cache"


def build_for_one(directory: Path, model: str, cache: Path) -> Built:
    spec = SPEC.model_copy(update={"max_batch_size": 1})
    built = build(directory, model, spec, cache_in=cache)
    shutil.copy(built.cache, cache)
    return built


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["llama31", "qwen2_untied", "mistral", "llama_mha", "llama_untied_transformers5"]
)
def test_other_models_of_the_family_give_the_original_answers(
    model: str, common_cache: Path, tmp_path: Path
) -> None:
    built = build_for_one(tmp_path, model, common_cache)
    other, original = Engine(built.engine_dir), Original(built.model_dir)
    for length in (1, 9, 24):
        answers_like(original, other, [prompt_of(length)], SPEC.max_seq_len - length)


@pytest.mark.slow
def test_rotary_scaling_is_seen_even_by_short_prompts(common_cache: Path, tmp_path: Path) -> None:
    """Otherwise the test above would say nothing about it."""
    built = build_for_one(tmp_path, "llama31", common_cache)
    original = Original(built.model_dir)
    path = built.engine_dir / "config.json"
    config = json.loads(path.read_text())
    assert config["pretrained_config"].pop("rotary_scaling")["rope_type"] == "llama3"
    path.write_text(json.dumps(config))
    answer = Engine(built.engine_dir).generate([prompt_of(24)], 24, keep_logits=True)
    assert not original.verdict(prompt_of(24), answer, 0).passed
