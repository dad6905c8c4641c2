"""convert: Hugging Face files → TensorRT-LLM checkpoint."""

from pathlib import Path
from typing import Any

from trtforge.checkpoint import convert as convert_directory
from trtforge.checkpoint.upstream import preflight_upstream, write_normalised_config
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage
from trtforge.stages.target import checkpoint_target, upstream_converter
from trtforge.store import StageResult


def convert_inputs(model: PulledModel, spec: BuildSpec) -> dict[str, Any]:
    """What decides the checkpoint: the weights, and the whole checkpoint part of the spec."""
    return {
        "weights": model.weights_digest,
        "checkpoint": spec.checkpoint.model_dump(mode="json"),
    }


def convert(shop: Workshop, spec: BuildSpec, model: PulledModel) -> StageOutcome:
    """Convert the pulled model; the outputs are `config.json` and the rank files.

    Raises:
        InputError: The model cannot be converted as asked, or not by the tool asked for.
    """
    upstream = upstream_converter(shop, spec)
    target = checkpoint_target(spec.checkpoint)

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        source, out = scratch / "model", scratch / "checkpoint"
        shop.store.materialise(model.weights, source, on_progress=on_progress)
        if upstream is None:
            files = convert_directory(source, out, target, on_progress=on_progress)
        else:
            preflight_upstream(source, target)
            write_normalised_config(source)
            files = upstream.convert_upstream(source, out, target, on_progress)
        return Made(out, files)

    return run_stage(shop, "convert", convert_inputs(model, spec), make, _describe)


def _describe(result: StageResult) -> str:
    ranks = [f for f in result.outputs if f.path.endswith(".safetensors")]
    size_bytes = sum(f.size_bytes for f in ranks)
    return f"{len(ranks)} rank file{'s' * (len(ranks) > 1)}, {size_bytes / 1e6:.1f} MB"
