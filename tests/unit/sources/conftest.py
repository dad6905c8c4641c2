"""A Hub on localhost, and the model that all three kinds of source serve."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

_FIXTURE = Path(__file__).parents[2] / "fixtures" / "hf-models" / "llama_tied"


@pytest.fixture(autouse=True)
def _no_token_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory: weights, configuration, tokenizer, licence, and things not wanted."""
    directory = tmp_path / "model"
    shutil.copytree(_FIXTURE, directory)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "LICENSE.txt").write_text("Do what you like.")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A small model\n")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "training_log.csv").write_text("step,loss\n")
    (directory / "original").mkdir()
    (directory / "original" / "consolidated.safetensors").write_bytes(b"a second copy")
    return directory


SELECTED = {
    "LICENSE.txt",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
}


@pytest.fixture
def selected() -> set[str]:
    """What of `model` is the model."""
    return SELECTED
