"""From the checkpoint part of a spec to what the converters are asked, and what they refuse."""

from pathlib import Path

from trtforge.checkpoint import preflight
from trtforge.checkpoint.target import Target
from trtforge.checkpoint.upstream import (
    UpstreamConverter,
    preflight_upstream,
    require_upstream_converter,
)
from trtforge.engines.registry import open_backend
from trtforge.errors import InputError
from trtforge.spec import BuildSpec, CheckpointSpec
from trtforge.stages.stage import Workshop


class ModelNotForBackendError(InputError):
    """The backend asked for has no way to compile this architecture."""


def checkpoint_target(checkpoint: CheckpointSpec) -> Target:
    """The kind of checkpoint asked for."""
    return Target(
        version=checkpoint.target,
        dtype=checkpoint.dtype,
        tp=checkpoint.tp,
        pp=checkpoint.pp,
        use_parallel_embedding=checkpoint.use_parallel_embedding,
        embedding_sharding_dim=checkpoint.embedding_sharding_dim,
    )


def require_convertible(model_dir: Path, spec: BuildSpec) -> None:
    """Everything that can be known before converting, by the tool that will do it.

    Raises:
        ModelNotForBackendError: The model can be converted, but not compiled afterwards.
        InputError: One subclass per cause.
    """
    target = checkpoint_target(spec.checkpoint)
    if spec.checkpoint.tool != "trtforge":
        preflight_upstream(model_dir, target)
        return
    model = preflight(model_dir, target).model
    if spec.engine.backend == "aoti" and model.family.qk_layernorm:
        raise ModelNotForBackendError(
            f"the aoti backend does not know the normalised queries and keys of "
            f"{model.architecture}",
            field="engine.backend",
            value=spec.engine.backend,
            remedy="Use another model or backend; `trtforge convert` writes its checkpoint alone",
        )


def upstream_converter(shop: Workshop, spec: BuildSpec) -> UpstreamConverter | None:
    """What runs the release's own script, when the spec asks for that.

    Raises:
        NoUpstreamConverterError: The spec does, and its backend cannot.
    """
    if spec.checkpoint.tool != "upstream":
        return None
    name = spec.engine.backend
    return require_upstream_converter(name, open_backend(name, shop.interpreter(name)))
