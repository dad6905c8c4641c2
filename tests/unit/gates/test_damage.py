"""What the correctness gate sees, with eager PyTorch of a damaged model for an engine.

The same on a compiled engine, which takes a minute, is tests/functional/test_gate_damage.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from damage import GROSS, SUBTLE, damaged, write_model

from trtforge.engines.reference import run_driver
from trtforge.gates.checks import CorrectnessChecks, correctness_checks
from trtforge.gates.correctness import Verdict
from trtforge.gates.reading import reading_jobs
from trtforge.spec import parse_spec

SPEC = parse_spec(
    {
        "model": {"source": "tiny"},
        "engine": {
            "max_batch_size": 1,
            "max_input_len": 96,
            "max_seq_len": 128,
            "max_num_tokens": 96,
        },
        "benchmark": {"workload": {"input_tokens": 2, "output_tokens": 2}},
        "gates": {"new_tokens": 8, "text_tokens": 48},
    }
)


class Original:
    """A model, and its answers."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.model = write_model(directory / "model", seed)
        self.checks = checks_of(self.model)
        self.logits = directory / "logits"
        self.answers = answers(self.model, self.checks.reference_jobs, self.logits)

    def verdicts(self, other: Path, work: Path) -> list[Verdict]:
        """The gate's word on another model in this one's place."""
        return self.checks.judge(
            answers(other, self.checks.engine_jobs, work),
            self.answers,
            engine_logits_dir=work,
            reference_logits_dir=self.logits,
        )


def checks_of(model: Path) -> CorrectnessChecks:
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    checks = correctness_checks(SPEC, None, vocab_size)
    assert checks.reading is not None
    text = reading_jobs(checks.reading.text, teacher_forcing=True, max_batch_size=1)
    return CorrectnessChecks(
        checks.gates, checks.answers, checks.reference_answers, checks.sources, text
    )


def answers(model: Path, jobs: list[dict[str, Any]], logits: Path) -> dict[str, dict[str, Any]]:
    logits.mkdir()
    request = {
        "model_dir": str(model),
        "dtype": "bfloat16",
        "threads": 1,
        "device": "cpu",
        "jobs": jobs,
        "logits_dir": str(logits),
    }
    outputs = run_driver.run(request, lambda *_, **__: None)["outputs"]
    return {output["id"]: output for output in outputs}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("original"), seed=0)


@pytest.mark.parametrize("name", GROSS)
def test_a_damaged_model_fails(original: Original, tmp_path: Path, name: str) -> None:
    model = damaged(original.model, tmp_path / "model", GROSS[name])
    verdicts = original.verdicts(model, tmp_path / "logits")
    assert any(not verdict.passed for verdict in verdicts)
    # What happens to one sequence happens to the text too.
    assert not verdicts[-1].passed, verdicts[-1]
    assert verdicts[-1].source == "text"


def test_the_model_itself_passes(original: Original, tmp_path: Path) -> None:
    verdicts = original.verdicts(original.model, tmp_path / "logits")
    assert [verdict.reason for verdict in verdicts] == [""] * len(verdicts)
    assert {verdict.rounding_ratio for verdict in verdicts} == {1.0}


@pytest.mark.parametrize("seed", range(1, 4))
def test_one_damage_fails_whatever_the_weights(tmp_path: Path, seed: int) -> None:
    original = Original(tmp_path, seed)
    model = damaged(original.model, tmp_path / "damaged", GROSS["bias_dropped"])
    assert not all(verdict.passed for verdict in original.verdicts(model, tmp_path / "its"))
    again = original.verdicts(original.model, tmp_path / "again")
    assert all(verdict.passed for verdict in again)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("one_matrix_in_4_bits", True),
        ("all_matrices_in_8_bits", True),
        # Its error is smaller than what rounding does in the other layers: 1.0 to 1.1 times as far
        # from fp32. No gate that lets a true 16-bit engine pass can see it.
        ("one_matrix_in_8_bits", False),
    ],
)
def test_what_is_seen_of_weights_that_were_rounded(
    original: Original, tmp_path: Path, name: str, seen: bool
) -> None:
    model = damaged(original.model, tmp_path / "model", SUBTLE[name])
    verdicts = original.verdicts(model, tmp_path / "logits")
    assert any(not verdict.passed for verdict in verdicts) == seen
