"""Copies of the tiny fixture models that a test may break."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trtforge.checkpoint.safetensors_io import encode_header, read_header
from trtforge.checkpoint.target import Target

FIXTURES = Path(__file__).parents[2] / "fixtures"


@dataclass
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass
class HfModel:
    """A Hugging Face model directory, and the means to change it."""

    path: Path

    def edit_config(self, *remove: str, **changes: Any) -> None:
        file = self.path / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))

    def tensors(self) -> dict[str, Tensor]:
        return read_tensors(self.path / "model.safetensors")

    def save(self, tensors: dict[str, Tensor], file: str = "model.safetensors") -> None:
        write_tensors(self.path / file, tensors)

    def shard(self, count: int) -> None:
        """Split model.safetensors into `count` files with an index, as transformers does."""
        tensors = self.tensors()
        (self.path / "model.safetensors").unlink()
        weight_map: dict[str, str] = {}
        for shard in range(count):
            file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
            names = list(tensors)[shard::count]
            self.save({name: tensors[name] for name in names}, file)
            weight_map |= dict.fromkeys(names, file)
        self.write_index(weight_map)

    def index(self) -> dict[str, str]:
        return json.loads((self.path / "model.safetensors.index.json").read_text())["weight_map"]

    def write_index(self, weight_map: dict[str, str]) -> None:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (self.path / "model.safetensors.index.json").write_text(json.dumps(index))


def read_tensors(file: Path) -> dict[str, Tensor]:
    raw = file.read_bytes()
    return {
        name: Tensor(t.dtype, t.shape, raw[t.start_bytes : t.start_bytes + t.size_bytes])
        for name, t in read_header(file).items()
    }


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    header = encode_header((name, t.dtype, t.shape) for name, t in tensors.items())
    file.write_bytes(header + b"".join(t.data for t in tensors.values()))


def listing(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


@pytest.fixture
def hf_model(tmp_path: Path) -> Callable[[str], HfModel]:
    """`hf_model(name)`: a writable copy of the fixture model of that name."""

    def copy(name: str) -> HfModel:
        target = tmp_path / "models" / name
        shutil.copytree(FIXTURES / "hf-models" / name, target)
        return HfModel(target)

    return copy


@dataclass(frozen=True)
class UpstreamCase:
    """A fixture model, a target, and what upstream's converter writes for them."""

    model: str
    target: Target
    config: dict[str, Any]
    ranks: dict[str, dict[str, dict[str, Any]]]


def upstream_cases() -> dict[str, UpstreamCase]:
    cases = {}
    for file in sorted((FIXTURES / "trtllm-checkpoints" / "1.2").glob("*.json")):
        match = re.fullmatch(r"(\w+)-tp(\d+)-(pp|pe)(\d+)", file.stem)
        assert match, file
        tp, number = int(match[2]), int(match[4])
        target = (
            Target(tp=tp, pp=number)
            if match[3] == "pp"
            else Target(tp=tp, use_parallel_embedding=True, embedding_sharding_dim=number)
        )
        written = json.loads(file.read_text())
        cases[file.stem] = UpstreamCase(match[1], target, written["config"], written["ranks"])
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`upstream` runs once for everything that upstream's output is known for."""
    if "upstream" in metafunc.fixturenames:
        cases = upstream_cases()
        assert len(cases) >= 36, "conformance fixtures are missing"
        metafunc.parametrize("upstream", cases.values(), ids=cases.keys())


@pytest.fixture
def read_checkpoint() -> Callable[[Path], dict[str, Tensor]]:
    """The tensors of a rank file, by name."""
    return read_tensors


@pytest.fixture
def names_in() -> Callable[[Path], list[str]]:
    """Everything in a directory, hidden names too."""
    return listing
