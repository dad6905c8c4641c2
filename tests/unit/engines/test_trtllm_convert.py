"""Converting with the release's own script: which one, what it is shown, and what is believed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from models import write_tiny_model
from standin_engine import STANDIN_DIR, STANDIN_PYTHON

from trtforge import checkpoint
from trtforge.checkpoint.target import Target
from trtforge.checkpoint.upstream import require_upstream_converter
from trtforge.engines.driver_process import DriverTimeoutError
from trtforge.engines.trtllm.backend import TrtllmBackend
from trtforge.engines.trtllm.convert import (
    ConversionResourcesError,
    ExamplesMissingError,
    ScriptRefusedError,
    TargetMismatchError,
    UpstreamCheckpointError,
    WeightsBrokenError,
    convert_upstream,
    shadow_model,
)
from trtforge.files import FileRef, describe_directory
from trtforge.progress import Progress, ignore

TARGET = Target(version="1.2", tp=2)


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TRTFORGE_STANDIN_PYTHON", sys.executable)
    monkeypatch.setenv("TRTLLM_EXAMPLES", str(STANDIN_DIR))
    return monkeypatch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", with_tokenizer=False)


def converted(model: Path, out: Path, target: Target = TARGET, **more: Any) -> list[FileRef]:
    return convert_upstream(STANDIN_PYTHON, model, out, target, ignore, **more)


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.name != "model"]


@pytest.mark.parametrize("version", ["1.2", "0.16"])
def test_the_releases_script_makes_the_checkpoint(
    tmp_path: Path, model: Path, standin: pytest.MonkeyPatch, version: str
) -> None:
    standin.setenv("TRTFORGE_STANDIN_VERSION", "0.16.0" if version == "0.16" else "1.2.1")
    target = Target(version=version, tp=2)

    files = converted(model, tmp_path / "out", target)

    ours = checkpoint.convert(model, tmp_path / "ours", target)
    assert sorted(files) == sorted(ours)
    assert files == describe_directory(tmp_path / "out")
    assert sorted(leftovers(tmp_path)) == ["ours", "out"]


def test_progress_counts_the_ranks(tmp_path: Path, model: Path) -> None:
    heard: list[Progress] = []
    convert_upstream(STANDIN_PYTHON, model, tmp_path / "out", TARGET, heard.append)
    assert heard[-1].done == heard[-1].total == 2


def test_it_is_what_the_stage_asks_a_backend_for(tmp_path: Path, model: Path) -> None:
    converter = require_upstream_converter("trtllm", TrtllmBackend(STANDIN_PYTHON))
    files = converter.convert_upstream(model, tmp_path / "out", TARGET, ignore)
    assert files == describe_directory(tmp_path / "out")


def test_a_script_writes_only_for_its_own_release(
    tmp_path: Path, model: Path, standin: pytest.MonkeyPatch
) -> None:
    standin.setenv("TRTFORGE_STANDIN_VERSION", "1.1.0")
    with pytest.raises(TargetMismatchError, match=r"Set checkpoint.target to 1\.1") as caught:
        converted(model, tmp_path / "out")
    assert caught.value.field == "checkpoint.target"


def test_an_architecture_that_only_upstream_knows(tmp_path: Path, model: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1}
    (model / "config.json").write_text(json.dumps(config))
    files = converted(model, tmp_path / "out")
    assert [file.path for file in files] == [
        "config.json",
        "rank0.safetensors",
        "rank1.safetensors",
    ]


def test_the_script_sees_the_old_dialect_and_none_of_the_models_code(
    tmp_path: Path, model: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    parameters = {"rope_type": "default", "rope_theta": 500000.0}
    config.pop("rope_theta", None)
    config.pop("rope_scaling", None)
    config |= {"rope_parameters": parameters, "dtype": "bfloat16", "auto_map": {"AutoConfig": "x"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_own.py").write_text("raise SystemExit('ran')")
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    before = describe_directory(model)

    seen = shadow_model(model, tmp_path / "shadow")

    assert seen["rope_theta"] == 500000.0
    assert seen["torch_dtype"] == "bfloat16"
    assert "auto_map" not in seen
    names = {path.name for path in (tmp_path / "shadow").iterdir()}
    assert "config.json" in names
    assert not {"modeling_own.py", "pytorch_model.bin"} & names
    assert describe_directory(model) == before, "the model itself is not touched"
    converted(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("convert-missing-rank", UpstreamCheckpointError, r"rank1\.safetensors is missing"),
        ("convert-truncated", UpstreamCheckpointError, "bytes instead of"),
        ("convert-other-world", UpstreamCheckpointError, "3 ranks instead of 2"),
        ("convert-split", ScriptRefusedError, "checkpoint.tp"),
        ("convert-unknown-argument", ExamplesMissingError, "does not know an option"),
        ("convert-remote-code", ScriptRefusedError, "runs no code of models"),
        ("convert-disk-full", ConversionResourcesError, "the disk is full"),
        ("convert-host-oom", ConversionResourcesError, "killed"),
        ("convert-broken-weights", WeightsBrokenError, "Pull the model again"),
    ],
)
def test_nothing_half_made_is_left_and_the_cause_is_named(
    tmp_path: Path,
    model: Path,
    standin: pytest.MonkeyPatch,
    fault: str,
    error: type[Exception],
    words: str,
) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", fault)
    with pytest.raises(error, match=words):
        converted(model, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_script_that_hangs_is_ended(
    tmp_path: Path, model: Path, standin: pytest.MonkeyPatch
) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", "convert-hang")
    with pytest.raises(DriverTimeoutError):
        converted(model, tmp_path / "out", timeout_s=3)
    assert leftovers(tmp_path) == []


def test_missing_examples_and_those_of_another_release(
    tmp_path: Path, model: Path, standin: pytest.MonkeyPatch
) -> None:
    standin.setenv("TRTLLM_EXAMPLES", str(tmp_path / "nowhere"))
    with pytest.raises(ExamplesMissingError, match=r"tag v1\.2\.1"):
        converted(model, tmp_path / "out")
    sources = tmp_path / "model" / "sources"
    (sources / "examples").mkdir(parents=True)
    (sources / "examples" / "models").symlink_to(STANDIN_DIR / "examples" / "models")
    (sources / "tensorrt_llm").mkdir()
    (sources / "tensorrt_llm" / "version.py").write_text('__version__ = "1.1.0"')
    standin.setenv("TRTLLM_EXAMPLES", str(sources))
    with pytest.raises(ExamplesMissingError, match=r"are of TensorRT-LLM 1\.1\.0"):
        converted(model, tmp_path / "out")
