"""convert: Hugging Face files → TensorRT-LLM checkpoint."""

from pathlib import Path
from typing import Any

from trtforge.checkpoint import convert as convert_directory
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage
from trtforge.store import StageResult

_TARGET_VERSION = "1.2"


def convert_inputs(model: PulledModel, spec: BuildSpec) -> dict[str, Any]:
    """What decides the checkpoint."""
    return {
        "weights": model.weights_digest,
        "checkpoint": spec.checkpoint.model_dump(mode="json"),
        "target": _TARGET_VERSION,
    }


def convert(shop: Workshop, spec: BuildSpec, model: PulledModel) -> StageOutcome:
    """Convert the pulled model; the outputs are `config.json` and the rank files."""

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        shop.store.materialise(model.weights, scratch / "model", on_progress=on_progress)
        files = convert_directory(
            scratch / "model",
            scratch / "checkpoint",
            dtype=spec.checkpoint.dtype,
            tp=spec.checkpoint.tp,
            pp=spec.checkpoint.pp,
            on_progress=on_progress,
        )
        return Made(scratch / "checkpoint", files)

    return run_stage(shop, "convert", convert_inputs(model, spec), make, _describe)


def _describe(result: StageResult) -> str:
    ranks = [f for f in result.outputs if f.path.endswith(".safetensors")]
    size_bytes = sum(f.size_bytes for f in ranks)
    return f"{len(ranks)} rank file{'s' * (len(ranks) > 1)}, {size_bytes / 1e6:.1f} MB"
