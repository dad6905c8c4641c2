"""The layout of a checkpoint, decided before any byte is written.

A plan says for every rank file which tensors it holds, of what type and shape, and from which rows
of which stored tensors each one is made. Executing a plan (`convert`) needs no knowledge of models.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trtforge.checkpoint.casting import SOURCE_DTYPES, TARGET_DTYPES
from trtforge.checkpoint.families import Rule, Source
from trtforge.checkpoint.hf_config import ModelConfig
from trtforge.checkpoint.safetensors_io import StoredTensor, encode_header, size_in_bytes
from trtforge.errors import InputError

# Constant buffers that old versions of transformers saved; both sides recompute them.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"


class MissingTensorError(InputError):
    """The model's files lack a tensor that its config calls for."""


class TensorShapeError(InputError):
    """A stored tensor has another shape than the config calls for."""


class TensorDtypeError(InputError):
    """A stored tensor is neither bfloat16, float16 nor float32."""


class UnknownTensorError(InputError):
    """The model's files hold a tensor that conversion would have to drop."""


@dataclass(frozen=True)
class Rows:
    """Rows `start` up to but not including `stop` of a stored tensor, whole rows."""

    tensor: StoredTensor
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        return size_in_bytes(self.tensor.dtype, self.tensor.shape[1:])

    @property
    def offset_bytes(self) -> int:
        return self.start * self.row_bytes

    @property
    def size_bytes(self) -> int:
        return (self.stop - self.start) * self.row_bytes


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of a rank file: the rows of `sources`, one after the other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Rows, ...]

    @property
    def size_bytes(self) -> int:
        return size_in_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class RankFile:
    """One `rank<N>.safetensors`; tensors in the order in which they are written, by name."""

    name: str
    tensors: tuple[PlannedTensor, ...]

    @cached_property
    def header(self) -> bytes:
        return encode_header((tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(tensor.size_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class ConversionPlan:
    """A conversion that has passed every check.

    Attributes:
        config: TensorRT-LLM's config.json.
        ranks: The rank files, in rank order.
        notes: What differs from what one may expect, one sentence each, for people.
    """

    model_dir: Path
    model: ModelConfig
    config: Mapping[str, Any]
    ranks: tuple[RankFile, ...]
    notes: tuple[str, ...]

    @property
    def output_bytes(self) -> int:
        """Size of all rank files together."""
        return sum(rank.size_bytes for rank in self.ranks)


def plan_single_rank(
    model: ModelConfig, stored: Mapping[str, StoredTensor], dtype: str
) -> tuple[RankFile, ...]:
    """The rank files of a model that is not split (tp = pp = 1).

    Args:
        stored: Every tensor of the model's files, by Hugging Face name.
        dtype: TensorRT-LLM's name of the type to write, a key of `TARGET_DTYPES`.

    Raises:
        MissingTensorError, TensorShapeError, TensorDtypeError, UnknownTensorError: The files do
            not hold exactly what the config calls for; the first offender is named.
    """
    tensors = []
    expected: set[str] = {"lm_head.weight"} if model.tie_word_embeddings else set()
    for rule, prefix, source_prefix in _rules(model):
        tied = rule.if_tied if model.tie_word_embeddings else None
        name = prefix + rule.name
        rows = []
        for source in (tied,) if tied else rule.sources:
            tensor = _find(model, stored, source, source_prefix + source.name, name)
            expected.add(tensor.name)
            rows.append(Rows(tensor, 0, tensor.shape[0]))
        shape = (sum(part.stop - part.start for part in rows), *rows[0].tensor.shape[1:])
        tensors.append(PlannedTensor(name, TARGET_DTYPES[dtype], shape, tuple(rows)))
    _refuse_unknown(stored, expected)
    by_name = sorted(tensors, key=lambda tensor: tensor.name)
    return (RankFile("rank0.safetensors", tuple(by_name)),)


def _rules(model: ModelConfig) -> Iterator[tuple[Rule, str, str]]:
    """Every rule that applies, with the prefix of its own and of its sources' names."""
    family = model.family
    switches = {
        "always": True,
        "attention_bias": model.attention_bias,
        "dense_bias": model.dense_bias,
    }
    for rule in family.before:
        yield rule, "", ""
    for index in range(model.layers):
        for rule in family.layer:
            if switches[rule.condition]:
                yield rule, f"transformer.layers.{index}.", f"model.layers.{index}."
    for rule in family.after:
        yield rule, "", ""


def _find(
    model: ModelConfig,
    stored: Mapping[str, StoredTensor],
    source: Source,
    source_name: str,
    target_name: str,
) -> StoredTensor:
    if source_name not in stored:
        hint = (
            " or set tie_word_embeddings in config.json if the model has no output matrix"
            if source_name == "lm_head.weight"
            else ""
        )
        raise MissingTensorError(
            f"the model's files lack this tensor, needed for {target_name}",
            field="tensor",
            value=source_name,
            remedy=f"Download the model again{hint}",
        )
    tensor = stored[source_name]
    where = f"tensor {source_name} in {tensor.path.name}"
    expected = tuple(model.extent(dim) for dim in source.shape)
    if tensor.shape != expected:
        raise TensorShapeError(
            f"shape {list(expected)} is expected from config.json "
            f"({' × '.join(dim.value for dim in source.shape)})",
            field=where,
            value=list(tensor.shape),
            remedy="config.json and weights belong to different models: download both again",
        )
    if tensor.dtype not in SOURCE_DTYPES:
        raise TensorDtypeError(
            f"weights must be stored as {', '.join(SOURCE_DTYPES)}",
            field=where,
            value=tensor.dtype,
            remedy="Use the unquantised model it was made from",
        )
    return tensor


def _refuse_unknown(stored: Mapping[str, StoredTensor], expected: set[str]) -> None:
    for name, tensor in stored.items():
        if name not in expected and not name.endswith(_IGNORED_SUFFIX):
            raise UnknownTensorError(
                "the architecture has no place for this tensor, and dropping it would change "
                "the model",
                field=f"tensor in {tensor.path.name}",
                value=name,
                remedy="Check 'architectures', 'num_hidden_layers' and the bias keys in "
                "config.json, or use a model without it",
            )
