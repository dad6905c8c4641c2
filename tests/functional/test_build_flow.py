"""`trtforge build`: from a model directory to an engine that others can find, fetch and ask."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from forge import PROMPT, Build, Forge, prefect_http, write_spec
from models import write_tiny_model

from trtforge.canonical import sha256_file
from trtforge.files import FileRef, files_digest
from trtforge.store import Manifest

STAGES = ["pull", "convert", "compile", "benchmark", "publish"]
FIXTURES = Path(__file__).parents[1] / "fixtures" / "hf-models"


@pytest.fixture(scope="module")
def manifest(forge: Forge, built: Build) -> Manifest:
    """The first engine's manifest, as it lies in the bucket; its id is checked on reading."""
    return forge.store.get_manifest(built.result["engine_id"])


@pytest.fixture(scope="module")
def fetched(forge: Forge, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first engine, as `trtforge fetch` downloads it."""
    directory = tmp_path_factory.mktemp("fetched") / "engine"
    told = forge.json("fetch", manifest.engine_id[:12], directory)
    assert told == {"engine_id": manifest.engine_id, "directory": str(directory)}
    return directory


def aliases_of(forge: Forge, model: str) -> dict[str, str]:
    return {name.alias: record.engine_id for name, record in forge.store.list_aliases(model)}


def hits(result: Any) -> dict[str, bool]:
    return {stage["stage"]: stage["hit"] for stage in result["stages"]}


def test_every_stage_of_a_first_build_is_made(built: Build) -> None:
    assert [stage["stage"] for stage in built.result["stages"]] == STAGES
    assert not any(hits(built.result).values())
    assert all(stage["seconds"] > 0 and stage["detail"] for stage in built.result["stages"])


def test_the_manifest_says_what_was_asked_for_and_what_took_effect(
    forge: Forge, built: Build, manifest: Manifest
) -> None:
    assert built.result["location"] == forge.store.manifest_uri(manifest.engine_id)
    assert manifest.core.model.name == built.model.name
    assert manifest.core.spec["engine"] == {"backend": "aoti", **built.spec["engine"]}
    assert manifest.core.config["max_seq_len"] == built.spec["engine"]["max_seq_len"]
    assert manifest.core.config["device"] == built.spec["engine"]["options"]["device"]
    gates: dict[str, Any] = manifest.core.gates
    assert gates["correctness"]["passed"] is True
    assert manifest.timing_cache is not None
    assert manifest.timing_cache.outcome == "miss"


def test_the_evidence_of_the_gate_can_be_read(
    forge: Forge, manifest: Manifest, tmp_path: Path
) -> None:
    gates: dict[str, Any] = manifest.core.gates
    assert manifest.benchmark is not None
    digest = str(manifest.benchmark["report_sha256"])
    record = next(r for r in records(forge, "benchmark") if digest in str(r["outputs"]))
    size_bytes = next(f["size_bytes"] for f in record["outputs"] if f["sha256"] == digest)
    forge.store.get_file(digest, size_bytes, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["correctness"]) == gates["correctness"]["answers"]
    assert all(verdict["passed"] for verdict in report["correctness"])


def test_the_alias_points_at_the_engine(forge: Forge, built: Build) -> None:
    assert built.result["aliases"] == {"latest": True}
    assert aliases_of(forge, built.model.name) == {"latest": built.result["engine_id"]}


def test_what_is_fetched_is_the_whole_engine(fetched: Path, manifest: Manifest) -> None:
    found = {path.name for path in fetched.iterdir()}
    assert found == {ref.path for ref in manifest.core.files}
    assert found == {
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "rank0.pt2",
        "rank0.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for ref in manifest.core.files:
        assert sha256_file(fetched / ref.path) == ref.sha256


def test_the_weights_of_the_engine_are_the_checkpoint_itself(
    forge: Forge, manifest: Manifest
) -> None:
    outputs = [
        [FileRef.from_json(ref) for ref in record["outputs"]]
        for record in records(forge, "convert")
    ]
    checkpoint = next(o for o in outputs if files_digest(o) == manifest.core.parents.checkpoint)
    weights = next(ref for ref in checkpoint if ref.path == "rank0.safetensors")
    assert weights in manifest.core.files


def records(forge: Forge, stage: str) -> list[dict[str, Any]]:
    """All records of a stage, as they lie in the bucket."""
    bucket = forge.stack.s3_bucket
    keys = [key for key in forge.listing() if key.startswith(f"stages/{stage}/")]
    return [
        json.loads(forge.client.get_object(Bucket=bucket, Key=key)["Body"].read()) for key in keys
    ]


def test_fetch_does_not_touch_a_directory_with_something_in_it(
    forge: Forge, manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("x")
    done = forge.run("fetch", manifest.engine_id, tmp_path)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class Prefect:
    """What the Prefect UI knows of the first run for a model."""

    def __init__(self, forge: Forge, source: str) -> None:
        self._http = prefect_http(forge.stack)
        runs = self.ask("flow_runs", {"flow_runs": {"name": {"any_": [source]}}})
        self.run = min(runs, key=lambda run: run["start_time"])

    def ask(self, what: str, body: dict[str, Any]) -> Any:
        return self._http.post(f"{what}/filter", json=body).raise_for_status().json()

    def task_states(self) -> dict[str, str]:
        of_run = {"flow_runs": {"id": {"any_": [self.run["id"]]}}}
        tasks = self.ask("task_runs", of_run)
        return {task["name"].rpartition("-")[0]: task["state_name"] for task in tasks}

    def artifacts(self) -> dict[str, Any]:
        of_run = {"artifacts": {"flow_run_id": {"any_": [self.run["id"]]}}}
        return {artifact["key"]: artifact["data"] for artifact in self.ask("artifacts", of_run)}


@pytest.fixture(scope="module")
def prefect(forge: Forge, built: Build) -> Prefect:
    return Prefect(forge, str(built.model))


def test_the_run_and_its_tasks_are_in_the_prefect_ui(prefect: Prefect) -> None:
    assert prefect.run["state_name"] == "Completed"
    wanted = dict.fromkeys(["plan", *STAGES, "gate", "alias"], "Completed")
    deadline = time.monotonic() + 30
    # Task runs are written from events, a moment after the run has ended.
    while (states := prefect.task_states()) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    assert states == wanted


def test_its_artifacts_tell_what_was_planned_made_and_measured(
    prefect: Prefect, built: Build
) -> None:
    artifacts = prefect.artifacts()
    plan = json.loads(artifacts["plan"])
    assert [(row["Stage"], row["Status"]) for row in plan] == [
        ("pull", "to do"),
        *((stage, "follows") for stage in STAGES[1:]),
    ]
    assert built.result["location"] in artifacts["manifest"]
    [row] = json.loads(artifacts["benchmark-table"])
    assert row["Concurrency"] == "1"
    assert float(row["Output tokens/s"]) > 0
    assert float(row["eager tokens/s"]) > 0
    card = artifacts["engine-card"]
    # What the terminal shows, and pictures.
    pictures = [line for line in card.splitlines() if line.startswith("![")]
    assert len(pictures) == 2
    text = [line for line in card.splitlines() if line and line not in pictures]
    assert text == [line for line in built.result["card"].splitlines() if line]
    assert built.result["engine_id"] in card
    assert "| `max_seq_len` | 96 | 96 |" in card
    assert "eager TTFT" in card
    assert PROMPT in card
    assert f"{built.result['answer']['tokens']} tokens in" in card


def test_no_secret_is_in_what_the_run_left_behind(
    forge: Forge, prefect: Prefect, built: Build
) -> None:
    state = json.loads(forge.stack.credentials_path.read_text())
    told = json.dumps([prefect.run, prefect.artifacts(), dict(built.result)])
    assert state["s3"]["secret_access_key"] not in told
    assert state["postgres"]["password"] not in told


def test_a_second_build_finds_everything_and_changes_nothing(forge: Forge, built: Build) -> None:
    before = forge.listing()
    done = forge.run("build", built.spec_file, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert all(hits(result).values())
    assert result["engine_id"] == built.result["engine_id"]
    assert result["answer"] == built.result["answer"]
    assert result["aliases"] == {"latest": False}
    assert forge.listing() == before
    lines = done.stderr.splitlines()
    assert [line.split()[:3] for line in lines] == [["=", stage, "found"] for stage in STAGES]


def test_a_forced_build_makes_everything_again_with_a_warm_model_cache(
    forge: Forge, built: Build, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", built.model, publish={"aliases": ["forced"]})
    result = forge.json("build", spec, "--force")
    assert not any(hits(result).values())
    compiled = next(s["detail"] for s in result["stages"] if s["stage"] == "compile")
    match = re.fullmatch(
        r"compiled in ([\d.]+) s with a warm model\.cache; ([\d.]+) s without it, ([\d.]+)×",
        compiled,
    )
    assert match, compiled
    assert float(match[1]) < float(match[2])
    assert aliases_of(forge, built.model.name) == {
        "latest": built.result["engine_id"],
        "forced": result["engine_id"],
    }


def test_a_plan_says_what_is_to_do_and_changes_nothing(forge: Forge, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "never-built", seed=77)
    spec = write_spec(tmp_path / "spec.yaml", model)
    before = forge.listing()
    plan = forge.json("plan", spec)
    assert [(stage["stage"], stage["status"]) for stage in plan["stages"]] == [
        ("pull", "to do"),
        *((stage, "follows") for stage in STAGES[1:]),
    ]
    assert plan["model_bytes"] == sum(path.stat().st_size for path in model.iterdir())
    assert plan["toolchain"]["backend"] == "aoti"
    assert forge.listing() == before


def test_a_plan_after_a_build_says_what_is_in_the_store(forge: Forge, built: Build) -> None:
    done = forge.run("plan", built.spec_file)
    assert done.returncode == 0, done.stderr
    assert str(built.model) in done.stdout
    assert done.stdout.count("in store") == len(STAGES)


def test_list_and_show_name_the_engine(forge: Forge, built: Build, manifest: Manifest) -> None:
    engines = forge.json("list")
    [mine] = [e for e in engines if e["engine_id"] == manifest.engine_id]
    assert mine["model"] == built.model.name
    assert mine["aliases"] == ["latest"]
    assert manifest.engine_id[:12] in forge.run("list").stdout
    assert forge.json("show", manifest.engine_id[:8]) == manifest.model_dump(mode="json")
    card = forge.run("show", manifest.engine_id[:8]).stdout
    assert built.result["location"] in card.splitlines()
    assert "| Aliases | `latest` |" in card


def test_generate_answers_greedily_as_the_published_copy_did(forge: Forge, built: Build) -> None:
    published = built.result["answer"]
    answer = forge.json(
        "generate",
        built.result["engine_id"],
        PROMPT,
        "--max-output-len",
        "12",
        "--temperature",
        "0",
    )
    assert answer["text"] == published["text"]
    assert answer["tokens"] == published["tokens"]
    assert 0 < answer["ttft_s"] <= answer["seconds"]


@pytest.mark.parametrize("command", ["show", "generate", "fetch"])
def test_an_unknown_engine_is_named(forge: Forge, command: str, tmp_path: Path) -> None:
    rest = {"show": [], "generate": ["Hello"], "fetch": [str(tmp_path / "out")]}
    done = forge.run(command, "0123456789", *rest[command])
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "0123456789" in line
    assert "trtforge list" in line


@pytest.mark.slow
@pytest.mark.usefixtures("built")
def test_a_model_without_a_tokenizer_answers_in_token_ids(forge: Forge, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.yaml", FIXTURES / "llama_tied")
    result = forge.json("build", spec)
    assert result["answer"]["prompt"] == "token ids [1, 2, 3, 4]"
    assert re.fullmatch(r"token ids \[\d+(, \d+){7}\]", result["answer"]["text"])
    done = forge.run("generate", result["engine_id"], "Hello")
    assert done.returncode == 2
    assert "without a tokenizer" in done.stderr
