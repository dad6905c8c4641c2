"""The correctness gate before a compiled engine whose weights are damaged.

One engine is compiled; weights and rotary configuration lie outside of what is compiled, so every
damage, and every other set of weights, is a copy of its directory with another checkpoint's.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from damage import GROSS, SUBTLE, damaged, write_model

from trtforge.checkpoint import convert
from trtforge.engines.aoti import run_driver
from trtforge.engines.aoti.backend import AotiBackend
from trtforge.engines.reference import run_driver as reference
from trtforge.gates.checks import CorrectnessChecks, correctness_checks
from trtforge.gates.correctness import Verdict
from trtforge.progress import ignore
from trtforge.spec import parse_spec

# The first test compiles, without a timing cache.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEDS = 6
SPEC = parse_spec(
    {
        "model": {"source": "tiny"},
        "engine": {
            "max_batch_size": 4,
            "max_input_len": 96,
            "max_seq_len": 128,
            "max_num_tokens": 384,
            "options": {"device": "cpu"},
        },
        "benchmark": {"workload": {"input_tokens": 2, "output_tokens": 2}},
        "gates": {"new_tokens": 8, "text_tokens": 48},
    }
)


class Compiled:
    """An engine, and the model it was compiled from."""

    def __init__(self, directory: Path) -> None:
        self.model = write_model(directory / "model")
        self._directory = directory / "engine"
        backend = AotiBackend()
        (directory / "work").mkdir()
        convert(self.model, directory / "checkpoint")
        backend.build(
            SPEC.engine,
            toolchain=backend.probe(SPEC.engine, directory / "work"),
            checkpoint_dir=directory / "checkpoint",
            engine_dir=self._directory,
            cache_in=None,
            cache_out=directory / "model.cache",
            work_dir=directory / "work",
            on_progress=ignore,
            on_log=lambda _: None,
        )

    def of(self, model: Path, directory: Path) -> Path:
        """The engine as it would be with another model's weights."""
        convert(model, directory / "checkpoint")
        engine = directory / "engine"
        shutil.copytree(self._directory, engine, copy_function=os.link)
        (engine / "rank0.safetensors").unlink()
        shutil.copyfile(
            directory / "checkpoint" / "rank0.safetensors", engine / "rank0.safetensors"
        )
        config = json.loads((engine / "config.json").read_text())
        theirs = json.loads((directory / "checkpoint" / "config.json").read_text())
        config["pretrained_config"] = {**config["pretrained_config"], **theirs}
        (engine / "config.json").unlink()
        (engine / "config.json").write_text(json.dumps(config))
        return engine


class Original:
    """The answers that an engine is compared with."""

    def __init__(self, model: Path, directory: Path) -> None:
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        self.checks: CorrectnessChecks = correctness_checks(SPEC, None, vocab_size)
        self._logits = directory
        directory.mkdir()
        request = {
            "model_dir": str(model),
            "dtype": "bfloat16",
            "device": "cpu",
            "threads": 1,
            "jobs": self.checks.reference_jobs,
            "logits_dir": str(directory),
        }
        self._outputs = by_id(reference.run(request, quiet))

    def verdicts(self, engine: Path, work: Path) -> list[Verdict]:
        work.mkdir()
        request = {
            "engine_dir": str(engine),
            "threads": 1,
            "jobs": self.checks.engine_jobs,
            "logits_dir": str(work),
        }
        return self.checks.judge(
            by_id(run_driver.run(request, quiet)),
            self._outputs,
            engine_logits_dir=work,
            reference_logits_dir=self._logits,
        )


def by_id(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {output["id"]: output for output in result["outputs"]}


def quiet(*_: Any, **__: Any) -> None:
    return None


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def original(compiled: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(compiled.model, tmp_path_factory.mktemp("original") / "logits")


@pytest.mark.parametrize("name", GROSS)
def test_a_damaged_engine_fails(
    compiled: Compiled, original: Original, tmp_path: Path, name: str
) -> None:
    engine = compiled.of(damaged(compiled.model, tmp_path / "model", GROSS[name]), tmp_path)
    verdicts = original.verdicts(engine, tmp_path / "logits")
    text = verdicts[-1]
    assert (text.source, text.method) == ("text", "teacher-forced")
    assert not text.passed, text
    assert any(not verdict.passed for verdict in verdicts[:-1])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_undamaged_engine_passes_whatever_its_weights(
    compiled: Compiled, tmp_path: Path, seed: int
) -> None:
    model = write_model(tmp_path / "model", seed)
    original = Original(model, tmp_path / "original")
    verdicts = original.verdicts(compiled.of(model, tmp_path), tmp_path / "logits")
    assert [verdict.reason for verdict in verdicts] == [""] * len(verdicts)


@pytest.mark.parametrize("name", SUBTLE)
def test_weights_of_few_bits(
    compiled: Compiled, original: Original, tmp_path: Path, name: str
) -> None:
    engine = compiled.of(damaged(compiled.model, tmp_path / "model", SUBTLE[name]), tmp_path)
    verdicts = original.verdicts(engine, tmp_path / "logits")
    ratios = [round(verdict.rounding_ratio or 0, 2) for verdict in verdicts]
    # As far from fp32 as another correct engine: docs/gates.md says that it is not seen.
    passes = name == "one_matrix_in_8_bits"
    assert all(verdict.passed for verdict in verdicts) is passes, ratios
