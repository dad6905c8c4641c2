"""An engine that does not compute what the model computes gets no alias; its evidence stays."""

import json
import re
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
from trtforge.store import Manifest, StageResult
from trtforge.store.gates import GateRecords

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
    assert re.search(r"\b0 of \d+ answers correct", stages[-1])
    assert re.match(
        r"error: gates = 'gates\.prompts\.0': (\d+) of \1 answers are wrong; the first: ", error
    )
    assert "No alias was moved" in error


def test_it_is_published_marked_and_no_alias_moves(forge: Forge, refused: Refused) -> None:
    new = {key.split("/")[0] for key in refused.after.keys() - refused.before.keys()}
    assert new - {"runs"} == {"blobs", "stages", "manifests", "gates"}
    kept = {key: refused.after.get(key) for key in refused.before}
    assert kept == refused.before
    manifest = failed_engine(forge, refused)
    gates: dict[str, Any] = manifest.core.gates
    assert gates["correctness"]["passed"] is False
    (record,) = GateRecords(forge.store.bucket).of(manifest.engine_id)
    verdict: Any = record.gates
    assert verdict["correctness"]["failed"] == verdict["correctness"]["answers"]
    assert verdict["correctness"]["first"] == "gates.prompts.0"
    assert manifest.engine_id[:12] in refused.stderr


def test_list_show_and_resolve_say_so(forge: Forge, refused: Refused) -> None:
    manifest = failed_engine(forge, refused)
    listed = {entry["engine_id"]: entry["gates"]["failed"] for entry in forge.json("list")}
    assert listed[manifest.engine_id] == ["correctness"]
    assert "gate failed" in forge.run("list").stdout
    assert "**correctness failed**" in forge.run("show", manifest.engine_id).stdout
    model = manifest.core.model.name
    assert forge.json("resolve", model)["engine"]["engine_id"] != manifest.engine_id


def test_the_evidence_is_in_the_store(forge: Forge, refused: Refused, tmp_path: Path) -> None:
    record = record_of(
        forge, "benchmark", lambda record: record.inputs["engine"] == refused.engine_digest
    )
    assert not any(verdict.passed for verdict in verdicts(record.facts))
    forge.store.materialise(record.outputs, tmp_path / "evidence")
    report: dict[str, Any] = json.loads((tmp_path / "evidence" / "report.json").read_text())
    assert all(verdict["reason"] for verdict in report["correctness"])


def test_trying_again_measures_nothing_and_is_refused_as_well(
    forge: Forge, refused: Refused
) -> None:
    again = forge.run("build", refused.spec_file, "--json")
    assert again.returncode == 5
    assert again.stderr.splitlines()[-1] == refused.stderr.splitlines()[-1]
    assert without_logs(forge.listing()) == without_logs(refused.after)


def test_an_override_lets_the_aliases_move_and_is_kept(forge: Forge, refused: Refused) -> None:
    manifest = failed_engine(forge, refused)
    before = forge.json("list", "--alias", "latest")
    done = forge.run("build", refused.spec_file, "--json", "--override", "a test of overrides")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine_id"] == manifest.engine_id
    state = GateRecords(forge.store.bucket).state(manifest)
    assert state.override is not None
    assert state.override.reason == "a test of overrides"
    assert state.override.by
    card = forge.run("show", manifest.engine_id).stdout
    assert "correctness failed; let pass by" in card
    assert "a test of overrides" in card
    # What the other tests of the session find is as it was.
    (good,) = [e for e in before if e["model"] == manifest.core.model.name]
    assert forge.run("promote", good["engine_id"], "latest").returncode == 0


def test_the_gates_run_again_on_a_published_engine(
    forge: Forge, built: Build, refused: Refused
) -> None:
    good = forge.json("gate", built.result["engine_id"])
    assert good["passed"]
    assert all(verdict["passed"] for verdict in good["verdicts"])
    sources = {verdict["source"] for verdict in good["verdicts"]}
    assert {"gates.prompts.0", "gates.prompts.1", "long-context", "text"} <= sources
    bad = forge.run("gate", failed_engine(forge, refused).engine_id)
    assert bad.returncode == 5
    assert "answers are wrong" in bad.stderr.splitlines()[-1]


def without_logs(listing: dict[str, str]) -> dict[str, str]:
    return {key: etag for key, etag in listing.items() if not key.startswith("runs/")}


def failed_engine(forge: Forge, refused: Refused) -> Manifest:
    (key,) = [
        key for key in refused.after.keys() - refused.before.keys() if key.startswith("manifests/")
    ]
    return forge.store.get_manifest(key.removeprefix("manifests/").removesuffix(".json"))
