"""Which part of each dimension belongs to which rank, and which splits a model allows.

Rank `r` of a checkpoint is pipeline rank `r // tp` and tensor-parallel rank `r % tp`. The rules are
those of TensorRT-LLM's `split`, `pad_vocab_size`, `dup_kv_weight` and `Mapping.pp_layers`.
"""

from dataclasses import dataclass

from trtforge.checkpoint.families import Dim
from trtforge.checkpoint.hf_config import ModelConfig
from trtforge.checkpoint.target import Target
from trtforge.errors import InputError

_LISTED_TP = 64


class TensorParallelError(InputError):
    """A dimension of the model cannot be shared out evenly among the tensor-parallel ranks."""


class PipelineParallelError(InputError):
    """The layers cannot be shared out among the pipeline-parallel ranks."""


@dataclass(frozen=True)
class Span:
    """The part `start` to `stop` of a dimension, and the zeros that follow it on this rank."""

    start: int
    stop: int
    padding: int = 0

    @property
    def length(self) -> int:
        return self.stop - self.start + self.padding


def check_split(model: ModelConfig, target: Target) -> None:
    """Refuse a split that the model does not allow.

    Raises:
        TensorParallelError: Query heads, key/value heads, MLP or embedding do not divide.
        PipelineParallelError: More ranks than layers; or the release would drop the layers that
            are left over (TensorRT-LLM up to 0.18 does so without a word).
    """
    for field, value, problem in _obstacles(model, target.tp, target):
        raise TensorParallelError(
            f"{problem} (config.json: {field})",
            field="checkpoint.tp",
            value=target.tp,
            remedy=f"Use a tp that this model allows: {_allowed_tp(model, target)}",
        ) from ValueError(value)
    if target.pp > model.layers:
        raise PipelineParallelError(
            f"the model's {model.layers} layers are not enough for so many ranks",
            field="checkpoint.pp",
            value=target.pp,
            remedy=f"Use at most {model.layers}",
        )
    if target.release == "0.16" and model.layers % target.pp:
        divisors = [n for n in range(1, model.layers + 1) if model.layers % n == 0]
        raise PipelineParallelError(
            f"{model.layers} layers do not divide by it, and TensorRT-LLM {target.version} would "
            f"silently drop {model.layers % target.pp} of them",
            field="checkpoint.pp",
            value=target.pp,
            remedy=f"Use one of {', '.join(map(str, divisors))}, or target 1.0 or newer",
        )


def layers_of(pp_rank: int, layers: int, pp: int) -> range:
    """The layers of a pipeline rank: the first `layers % pp` ranks get one more than the others."""
    each, more = divmod(layers, pp)
    start = pp_rank * each + min(pp_rank, more)
    return range(start, start + each + (pp_rank < more))


def span(model: ModelConfig, dim: Dim, tp: int, tp_rank: int) -> Span:
    """The part of a dimension that a tensor-parallel rank holds.

    Key/value heads fewer than ranks are held by several ranks; a vocabulary that does not divide
    is filled up with zeros at its end.
    """
    extent = model.extent(dim)
    if dim is Dim.KV and model.kv_heads < tp:
        head = tp_rank * model.kv_heads // tp
        return Span(head * model.head_size, (head + 1) * model.head_size)
    if dim is Dim.VOCAB:
        each = -(-extent // tp)
        start, stop = (min(extent, rank * each) for rank in (tp_rank, tp_rank + 1))
        return Span(start, stop, each - (stop - start))
    each = extent // tp
    return Span(tp_rank * each, (tp_rank + 1) * each)


def _obstacles(model: ModelConfig, tp: int, target: Target) -> list[tuple[str, int, str]]:
    """What keeps the model from being split `tp` ways: key of config.json, value, sentence."""
    dimensions = [
        ("num_attention_heads", model.heads, "attention heads"),
        ("intermediate_size", model.intermediate_size, "neurons of the MLP"),
    ]
    if target.use_parallel_embedding and target.embedding_sharding_dim == 1:
        dimensions.append(("hidden_size", model.hidden_size, "dimensions of the embedding"))
    found = [
        (key, extent, f"{extent} {what} cannot be shared out evenly among {tp} ranks")
        for key, extent, what in dimensions
        if extent % tp
    ]
    more, fewer = max(model.kv_heads, tp), min(model.kv_heads, tp)
    if more % fewer:
        found.append(
            (
                "num_key_value_heads",
                model.kv_heads,
                f"{model.kv_heads} key/value heads can neither be shared out evenly among {tp} "
                "ranks nor each be held by the same number of ranks",
            )
        )
    return found


def _allowed_tp(model: ModelConfig, target: Target) -> str:
    allowed = [tp for tp in range(1, _LISTED_TP + 1) if not _obstacles(model, tp, target)]
    return ", ".join(map(str, allowed))
