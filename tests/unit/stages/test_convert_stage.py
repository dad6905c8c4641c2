"""What decides a checkpoint in the store, and which tool makes it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trtforge.checkpoint.target import Target
from trtforge.checkpoint.upstream import NoUpstreamConverterError, UnknownModelTypeError
from trtforge.files import FileRef, describe_directory
from trtforge.progress import OnProgress, Progress
from trtforge.spec import BuildSpec, CheckpointSpec, parse_spec
from trtforge.stages import target as stage_target
from trtforge.stages.convert import convert, convert_inputs
from trtforge.stages.plan import make_plan
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Workshop, stage_key
from trtforge.stages.target import (
    ModelNotForBackendError,
    checkpoint_target,
    require_convertible,
)

MODEL = Path(__file__).parents[2] / "fixtures" / "hf-models" / "llama_untied_transformers5"
OTHER: dict[str, Any] = {
    "dtype": "float16",
    "tp": 2,
    "pp": 2,
    "use_parallel_embedding": True,
    "embedding_sharding_dim": 1,
    "target": "1.0",
    "tool": "upstream",
}


def spec(**checkpoint: Any) -> BuildSpec:
    """A spec with this checkpoint part, whether or not today's backends take it."""
    parsed = parse_spec({"model": {"source": str(MODEL)}})
    return parsed.model_copy(update={"checkpoint": CheckpointSpec(**checkpoint)})


@pytest.fixture
def model(shop: Workshop) -> PulledModel:
    files = describe_directory(MODEL, ["config.json", "model.safetensors"])
    for ref in files:
        shop.store.add_to_cache(MODEL / ref.path, ref)
    return PulledModel("tiny", str(MODEL), None, None, tuple(files))


def test_every_field_of_the_checkpoint_is_in_the_key(model: PulledModel) -> None:
    assert set(OTHER) == set(CheckpointSpec.model_fields)
    keys = {
        stage_key("convert", convert_inputs(model, spec(**changes)))
        for changes in ({}, *({name: value} for name, value in OTHER.items()))
    }
    assert len(keys) == 1 + len(OTHER)


def test_the_target_is_what_the_spec_says() -> None:
    assert checkpoint_target(CheckpointSpec(**OTHER)) == Target(
        version="1.0",
        dtype="float16",
        tp=2,
        pp=2,
        use_parallel_embedding=True,
        embedding_sharding_dim=1,
    )
    assert checkpoint_target(CheckpointSpec()) == Target()


def test_the_stage_writes_every_rank(shop: Workshop, model: PulledModel) -> None:
    outcome = convert(shop, spec(tp=2, pp=2), model)
    names = sorted(ref.path for ref in outcome.result.outputs)
    assert names == ["config.json", *(f"rank{rank}.safetensors" for rank in range(4))]
    assert outcome.detail.startswith("4 rank files")


def test_upstreams_tool_is_refused_by_the_plan_while_no_backend_has_it(shop: Workshop) -> None:
    with pytest.raises(NoUpstreamConverterError, match="backend is aoti"):
        make_plan(shop, spec(tool="upstream"))


def test_upstreams_tool_is_refused_by_the_stage_too(shop: Workshop, model: PulledModel) -> None:
    with pytest.raises(NoUpstreamConverterError):
        convert(shop, spec(tool="upstream"), model)


def test_a_model_is_checked_by_the_tool_that_converts_it(tmp_path: Path) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    other = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
    (tmp_path / "config.json").write_text(json.dumps(config | other))
    with pytest.raises(UnknownModelTypeError):
        require_convertible(tmp_path, spec(tool="upstream"))


def test_an_architecture_the_backend_cannot_compile_is_refused_before_anything_is_stored(
    tmp_path: Path,
) -> None:
    model = MODEL.parent / "qwen2_untied"
    tensors = {n: t for n, t in load_file(model / "model.safetensors").items() if "bias" not in n}
    for layer in range(3):
        for part in "qk":
            tensors[f"model.layers.{layer}.self_attn.{part}_norm.weight"] = np.ones(16, np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]})
    )
    with pytest.raises(ModelNotForBackendError, match=r"engine.backend = 'aoti'.*Qwen3ForCausalLM"):
        require_convertible(tmp_path, spec())


def test_a_backend_that_has_the_scripts_is_given_the_older_dialect(
    shop: Workshop, model: PulledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class WithScripts:
        def convert_upstream(
            self, model_dir: Path, out_dir: Path, target: Target, on_progress: OnProgress
        ) -> list[FileRef]:
            given["config"] = json.loads((model_dir / "config.json").read_text())
            given["target"] = target
            on_progress(Progress("converting", 1, 2, "steps"))
            out_dir.mkdir()
            (out_dir / "config.json").write_text("{}")
            return describe_directory(out_dir)

    monkeypatch.setattr(stage_target, "open_backend", lambda *_: WithScripts())
    outcome = convert(shop, spec(tool="upstream", target="1.0"), model)
    assert [ref.path for ref in outcome.result.outputs] == ["config.json"]
    assert given["target"] == Target(version="1.0")
    assert given["config"]["torch_dtype"]
    assert given["config"]["rope_theta"]
    assert "rope_parameters" not in given["config"]
    # The cache, which the file was linked from, keeps the model's own.
    shop.store.materialise(model.files, shop.work_root / "again")
    again = (shop.work_root / "again" / "config.json").read_bytes()
    assert again == (MODEL / "config.json").read_bytes()
