"""An engine that does not compute what the model computes is not published."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from forge import Build, Forge, write_spec
from safetensors.numpy import load_file, save_file

from trtforge.engines.base import Toolchain
from trtforge.files import describe_directory, files_digest
from trtforge.spec import load_spec
from trtforge.stages.benchmark import verdicts
from trtforge.stages.compile import compile_inputs, engine_files
from trtforge.stages.stage import stage_key
from trtforge.store import StageResult

WEIGHTS = "rank0.safetensors"


@dataclass(frozen=True)
class Refused:
    """A build that found a damaged engine in the store."""

    spec_file: Path
    engine_digest: str
    before: dict[str, str]
    after: dict[str, str]
    exit_code: int
    stdout: str
    stderr: str


def record_of(forge: Forge, stage: str, wanted: Callable[[StageResult], bool]) -> StageResult:
    bucket = forge.stack.s3_bucket
    for key in forge.listing():
        if key.startswith(f"stages/{stage}/"):
            data = forge.client.get_object(Bucket=bucket, Key=key)["Body"].read()
            record = StageResult.model_validate_json(data)
            if wanted(record):
                return record
    raise AssertionError(f"no such record of {stage}")


def damage(weights: Path) -> None:
    """Turn one matrix of one layer round; everything else stays as it was."""
    tensors = load_file(weights)
    name = "transformer.layers.1.mlp.proj.weight"
    turned = -tensors[name].astype(np.float32)
    tensors[name] = turned.astype(ml_dtypes.bfloat16)
    # Not in place: what was read may share its bytes with the file.
    save_file(tensors, weights.with_suffix(".new"))
    weights.with_suffix(".new").replace(weights)


@pytest.fixture(scope="module")
def refused(forge: Forge, built: Build, tmp_path_factory: pytest.TempPathFactory) -> Refused:
    """Build with an engine in the store whose weights are not the checkpoint's.

    It is the session's first engine under another `max_num_tokens`, which makes it another stage:
    the true one stays as it is.
    """
    directory = tmp_path_factory.mktemp("gate")
    spec_file = write_spec(directory / "spec.yaml", built.model, engine={"max_num_tokens": 95})
    manifest = forge.store.get_manifest(built.result["engine_id"])
    weights = next(ref for ref in manifest.core.files if ref.path == WEIGHTS)
    engine = record_of(forge, "compile", lambda record: weights in record.outputs)
    checkpoint = record_of(forge, "convert", lambda record: weights in record.outputs)

    forge.store.materialise(engine.outputs, directory / "engine")
    damage(directory / "engine" / WEIGHTS)
    outputs = tuple(describe_directory(directory / "engine"))
    forge.store.put_files(directory / "engine", outputs)
    toolchain = Toolchain.from_json(manifest.core.toolchain)
    inputs = compile_inputs(checkpoint.outputs, load_spec(spec_file), toolchain)
    key = stage_key("compile", inputs)
    forge.store.put_stage(
        engine.model_copy(update={"key": key, "inputs": inputs, "outputs": outputs})
    )
    before = forge.listing()
    done = forge.run("build", spec_file, "--json")
    return Refused(
        spec_file=spec_file,
        engine_digest=files_digest(engine_files(outputs)),
        before=before,
        after=forge.listing(),
        exit_code=done.returncode,
        stdout=done.stdout,
        stderr=done.stderr,
    )


def test_the_build_ends_with_the_exit_code_of_a_gate_and_says_why(refused: Refused) -> None:
    assert refused.exit_code == 5
    assert refused.stdout == ""
    *stages, error = refused.stderr.splitlines()
    assert [line.split()[:2] for line in stages] == [
        ["=", "pull"],
        ["=", "convert"],
        ["=", "compile"],
        ["+", "benchmark"],
    ]
    assert "0 of 2 answers correct" in stages[-1]
    assert error.startswith("error: gates.prompts = 0: 2 of 2 answers are wrong; the first: ")
    assert "not published" in error


def test_nothing_is_published_and_no_alias_moves(refused: Refused) -> None:
    new = {key.split("/")[0] for key in refused.after.keys() - refused.before.keys()}
    assert new == {"blobs", "stages"}
    kept = {key: refused.after.get(key) for key in refused.before}
    assert kept == refused.before


def test_the_evidence_is_in_the_store(forge: Forge, refused: Refused, tmp_path: Path) -> None:
    record = record_of(
        forge, "benchmark", lambda record: record.inputs["engine"] == refused.engine_digest
    )
    assert [verdict.passed for verdict in verdicts(record.facts)] == [False, False]
    forge.store.materialise(record.outputs, tmp_path / "evidence")
    report: dict[str, Any] = json.loads((tmp_path / "evidence" / "report.json").read_text())
    assert all(verdict["reason"] for verdict in report["correctness"])


def test_trying_again_measures_nothing_and_is_refused_as_well(
    forge: Forge, refused: Refused
) -> None:
    again = forge.run("build", refused.spec_file, "--json")
    assert again.returncode == 5
    assert again.stderr.splitlines()[-1] == refused.stderr.splitlines()[-1]
    assert forge.listing() == refused.after
