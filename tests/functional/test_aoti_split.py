"""An aoti engine of two ranks: built by the whole flow, run by two processes and gloo on a CPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from forge import PARTS, Build, Forge, tiny_spec, write_spec
from models import VOCAB, write_tiny_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_aoti_engine import sharpened

from trtforge.checkpoint import Target, convert
from trtforge.engines.aoti.backend import AotiBackend
from trtforge.engines.base import BuildOutcome, RunOutcome
from trtforge.engines.driver_process import DriverFailedError
from trtforge.engines.reference.runner import run_reference
from trtforge.gates.correctness import Verdict, correctness_jobs, judge
from trtforge.progress import OnProgress, Progress, ignore
from trtforge.spec import EngineSpec
from trtforge.spec.gates import GatesSpec
from trtforge.store import Manifest

BACKEND = AotiBackend()
SPEC = EngineSpec.model_validate(PARTS["engine"])
GATES = GatesSpec()


@pytest.fixture(scope="module")
def split(forge: Forge, built: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The engine of two ranks, from model directory to alias; `built` was to be the first."""
    del built
    directory = tmp_path_factory.mktemp("split")
    model = write_tiny_model(directory / "tiny-split", seed=6)
    parts = {"checkpoint": {"tp": 2}}
    spec_file = write_spec(directory / "spec.yaml", model, **parts)
    return Build(model, tiny_spec(model, **parts), spec_file, forge.json("build", spec_file))


@pytest.fixture(scope="module")
def manifest(forge: Forge, split: Build) -> Manifest:
    return forge.store.get_manifest(split.result["engine_id"])


@pytest.fixture(scope="module")
def engine(forge: Forge, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fetched") / "engine"
    forge.store.materialise(manifest.core.files, directory)
    return directory


class Place:
    """Where one engine is run."""

    def __init__(self, directory: Path) -> None:
        self.work, self.logits = directory / "work", directory / "logits"
        self.work.mkdir(parents=True)
        self.logits.mkdir()

    def run(
        self,
        engine: Path,
        *jobs: dict[str, Any],
        spec: EngineSpec = SPEC,
        on_progress: OnProgress = ignore,
    ) -> RunOutcome:
        return BACKEND.run(
            spec,
            engine_dir=engine,
            jobs=jobs,
            logits_dir=self.logits,
            work_dir=self.work,
            on_progress=on_progress,
            on_log=lambda _: None,
        )

    def logits_of(self, output: dict[str, Any]) -> Any:
        return np.fromfile(self.logits / output["logits"], dtype="<f4")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


def prompt_of(length: int, vocab: int = VOCAB) -> list[int]:
    source = np.random.default_rng([9, length])
    return [int(token) for token in source.integers(5, vocab, length)]


def job(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "prompts": [prompt_of(9)], "max_new_tokens": 12, **changes}


class TestTheWholeFlow:
    def test_the_engine_has_every_rank_and_passed_its_gates(
        self, split: Build, manifest: Manifest
    ) -> None:
        assert [stage["stage"] for stage in split.result["stages"]][:3] == [
            *("pull", "convert", "compile")
        ]
        assert manifest.core.ranks == 2
        assert manifest.core.config["tp"] == 2
        gates: dict[str, Any] = manifest.core.gates
        assert gates["correctness"]["passed"] is True
        assert gates["correctness"]["answers"] > 0
        files = {ref.path: ref.sha256 for ref in manifest.core.files}
        # The same code on both, other weights.
        assert files["rank0.pt2"] == files["rank1.pt2"]
        assert files["rank0.safetensors"] != files["rank1.safetensors"]
        assert split.result["aliases"] == {"latest": True}

    def test_its_report_tells_of_answers_like_the_originals_and_of_one_cpu(
        self, forge: Forge, manifest: Manifest
    ) -> None:
        assert manifest.benchmark is not None
        digest = str(manifest.benchmark["report_sha256"])
        key = next(key for key in forge.listing() if key.endswith(digest))
        blob = forge.client.get_object(Bucket=forge.stack.s3_bucket, Key=key)["Body"].read()
        report = json.loads(blob)
        verdicts = report["correctness"]
        assert all(verdict["passed"] for verdict in verdicts)
        # Rounding excuses a difference; not so many that it would be another text.
        agreed, compared = (
            sum(verdict[name] for verdict in verdicts)
            for name in ("agreed_tokens", "compared_tokens")
        )
        assert agreed > compared / 2
        # Both ranks have one memory to read their weights from.
        assert report["limits"]["ranks"] == 1


class TestEngine:
    def test_its_weights_are_the_converters_rank_files(
        self, split: Build, engine: Path, tmp_path: Path
    ) -> None:
        convert(split.model, tmp_path / "checkpoint", target=Target(tp=2))
        for rank in range(2):
            name = f"rank{rank}.safetensors"
            assert (engine / name).read_bytes() == (tmp_path / "checkpoint" / name).read_bytes()

    def test_ranks_go_on_with_the_same_tokens_and_a_warm_build_answers_the_same(
        self, forge: Forge, split: Build, engine: Path, place: Place, tmp_path: Path
    ) -> None:
        sampling = {"temperature": 1.5, "seed": 4}
        sampled, greedy = place.run(
            engine, job(sampling=sampling, logits=True), job(id="greedy")
        ).outputs
        assert sampled["tokens"] != greedy["tokens"]

        toolchain = BACKEND.probe(SPEC, place.work)
        assert forge.store.timing.get(toolchain.key(), tmp_path / "input.cache")
        warm = build(tmp_path, split.model, 2, SPEC, cache_in=tmp_path / "input.cache")
        assert warm.cache == "warm"
        assert [step["name"] for step in warm.steps] == warm.effective["graphs"]
        # One file under two names: it is written once.
        packages = [(tmp_path / "engine" / f"rank{rank}.pt2").stat() for rank in range(2)]
        assert packages[0].st_ino == packages[1].st_ino

        reread, again = place.run(
            tmp_path / "engine",
            job(id="read", forced=sampled["tokens"], logits=True),
            job(id="again", sampling=sampling),
        ).outputs
        # Had a rank gone on with another token, its part of the next logits would be another's.
        assert np.array_equal(place.logits_of(reread), place.logits_of(sampled))
        assert again["tokens"] == sampled["tokens"]
        assert {path.name for path in place.logits.iterdir()} == {
            *(sampled["logits"], reread["logits"])
        }


def test_a_rank_that_is_killed_ends_the_run(engine: Path, place: Place) -> None:
    killed: list[psutil.Process] = []
    everybody: list[psutil.Process] = []

    def kill(progress: Progress) -> None:
        if killed or progress.what != "a":
            return
        started = {p: " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)}
        everybody.extend(p for p, command in started.items() if "aoti.run_driver" in command)
        killed.extend(p for p, command in started.items() if "/request1.json" in command)
        killed[0].kill()

    with pytest.raises(DriverFailedError, match="rank 1 of 2 was ended by SIGKILL") as caught:
        # For hours, if nobody ended it.
        place.run(engine, job(repeats=10**6), on_progress=kill)
    assert caught.value.cause == "rank-killed"
    assert "memory" in caught.value.remedy
    # The driver and two ranks.
    assert len(everybody) == 3
    assert not [p for p in everybody if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert [path.name for path in place.work.iterdir()] == ["run_driver.log"]


def build(
    directory: Path, model: Path, ranks: int, spec: EngineSpec, cache_in: Path | None = None
) -> BuildOutcome:
    """Convert and compile for so many ranks; leaves `engine` and `model.cache` in `directory`."""
    work = directory / "build"
    work.mkdir(parents=True)
    convert(model, directory / "checkpoint", target=Target(tp=ranks))
    return BACKEND.build(
        spec,
        toolchain=BACKEND.probe(spec, work),
        checkpoint_dir=directory / "checkpoint",
        engine_dir=directory / "engine",
        cache_in=cache_in,
        cache_out=directory / "model.cache",
        work_dir=work,
        on_progress=ignore,
        on_log=lambda _: None,
    )


def judged(
    place: Place, engine: Path, model: Path, spec: EngineSpec, prompts: list[list[int]]
) -> list[Verdict]:
    """What the gate says of the engine's answers to these prompts."""
    reference = place.work.parent / "eager"
    reference.mkdir()
    mine, theirs = correctness_jobs(prompts, 16, spec.max_batch_size)
    answers = place.run(engine, *mine, spec=spec)
    originals = run_reference(
        model,
        dtype="bfloat16",
        device="cpu",
        threads=0,
        jobs=theirs,
        logits_dir=reference,
        work_dir=place.work,
        on_progress=ignore,
        on_log=lambda _: None,
    )
    return judge(
        mine,
        {output["id"]: output for output in answers.outputs},
        {output["id"]: output for output in originals.outputs},
        engine_logits_dir=place.logits,
        reference_logits_dir=reference,
        rounding_factor=GATES.rounding_factor,
        step_factor=GATES.step_factor,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "ranks"), [("qwen2_untied", 2), ("llama_tied", 4)])
def test_batches_of_every_size_on_ranks_of_every_kind(
    name: str, ranks: int, tmp_path: Path
) -> None:
    """Biases; more ranks than key/value heads, and rows that only fill the vocabulary up."""
    model = sharpened(name, tmp_path)
    spec = EngineSpec(
        max_batch_size=6,
        max_input_len=24,
        max_seq_len=48,
        max_num_tokens=48,
        options={"device": "cpu"},
    )
    build(tmp_path / "split", model, ranks, spec)
    # The last batch has two prompts: one, few and more sequences run other graphs.
    prompts = [prompt_of(n, 259) for n in (3, 12, 24, 8, 1, 7, 16, 20)]
    split = judged(Place(tmp_path / "a"), tmp_path / "split" / "engine", model, spec, prompts)
    assert [v for v in split if not v.passed] == []
    assert len(split) == 2 * len(prompts)
    build(tmp_path / "whole", model, 1, spec)
    whole = judged(Place(tmp_path / "b"), tmp_path / "whole" / "engine", model, spec, prompts)
    # No further from the original, over all answers, than rounding takes the engine of one rank.
    mine, theirs = (np.mean([v.rounding_ratio for v in told]) for told in (split, whole))
    assert mine < 1.5 * theirs
