"""The layout of a checkpoint, decided before any byte is written.

A plan says for every rank file which tensors it holds, of what type and shape, and from which
rectangles of which stored tensors each one is made. Executing it (`streaming`) needs no knowledge
of models.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trtforge.checkpoint.casting import SOURCE_DTYPES, TARGET_DTYPES
from trtforge.checkpoint.families import Rule, Source, Split
from trtforge.checkpoint.hf_config import ModelConfig
from trtforge.checkpoint.safetensors_io import StoredTensor, encode_header, size_in_bytes
from trtforge.checkpoint.split import Span, layers_of, span
from trtforge.checkpoint.target import Target
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
class Block:
    """A rectangle of a stored tensor. A tensor of one dimension has rows of one number."""

    tensor: StoredTensor
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int

    @property
    def row_numbers(self) -> int:
        """Numbers in a whole row of the stored tensor."""
        return math.prod(self.tensor.shape[1:])

    @property
    def has_whole_rows(self) -> bool:
        return self.column_stop - self.column_start == self.row_numbers


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of a rank file: the blocks of `sources` one after the other, then zeros."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Block, ...]
    padding_bytes: int = 0

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

    @cached_property
    def size_bytes(self) -> int:
        return len(self.header) + sum(tensor.size_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class ConversionPlan:
    """A conversion that has passed every check.

    Attributes:
        config: TensorRT-LLM's config.json.
        groups: The rank files, in rank order; those of one pipeline rank together. They have the
            same tensors, of the same sources, which are read once for the whole group.
        notes: What differs from what one may expect, one sentence each, for people.
    """

    model_dir: Path
    model: ModelConfig
    target: Target
    config: Mapping[str, Any]
    groups: tuple[tuple[RankFile, ...], ...]
    notes: tuple[str, ...]

    @property
    def ranks(self) -> tuple[RankFile, ...]:
        """All rank files, in rank order."""
        return tuple(rank for group in self.groups for rank in group)

    @property
    def output_bytes(self) -> int:
        """Size of all rank files together."""
        return sum(rank.size_bytes for rank in self.ranks)


def plan_groups(
    model: ModelConfig, stored: Mapping[str, StoredTensor], target: Target
) -> tuple[tuple[RankFile, ...], ...]:
    """The rank files, grouped by pipeline rank.

    Args:
        stored: Every tensor of the model's files, by Hugging Face name.

    Raises:
        MissingTensorError, TensorShapeError, TensorDtypeError, UnknownTensorError: The files do
            not hold exactly what the config calls for; the first offender is named.
    """
    expected: set[str] = {"lm_head.weight"} if model.tie_word_embeddings else set()
    groups = []
    for pp_rank in range(target.pp):
        rules = []
        for rule, prefix, source_prefix in _rules(model, target, pp_rank):
            tied = rule.if_tied if model.tie_word_embeddings else None
            name = prefix + rule.name
            found = []
            for source in (tied,) if tied else rule.sources:
                tensor = _find(model, stored, source, source_prefix + source.name, name)
                expected.add(tensor.name)
                found.append((source, tensor))
            rules.append((name, rule.split, found))
        rules.sort(key=lambda entry: entry[0])
        groups.append(
            tuple(
                RankFile(
                    f"rank{pp_rank * target.tp + tp_rank}.safetensors",
                    tuple(_plan_tensor(model, target, tp_rank, *entry) for entry in rules),
                )
                for tp_rank in range(target.tp)
            )
        )
    _refuse_unknown(stored, expected)
    return tuple(groups)


def _plan_tensor(
    model: ModelConfig,
    target: Target,
    tp_rank: int,
    name: str,
    split: Split,
    found: Sequence[tuple[Source, StoredTensor]],
) -> PlannedTensor:
    axis = _axis(split, target)
    dtype = TARGET_DTYPES[target.dtype]
    blocks = []
    length = padding = 0
    for source, tensor in found:
        rows = Span(0, tensor.shape[0])
        columns = Span(0, math.prod(tensor.shape[1:]))
        if axis == 0:
            rows = span(model, source.shape[0], target.tp, tp_rank)
        elif axis == 1:
            columns = span(model, source.shape[1], target.tp, tp_rank)
        blocks.append(Block(tensor, rows.start, rows.stop, columns.start, columns.stop))
        length += rows.length
        padding += rows.padding
    shape = (length, columns.length) if len(tensor.shape) == 2 else (length,)
    return PlannedTensor(
        name, dtype, shape, tuple(blocks), size_in_bytes(dtype, (padding, *shape[1:]))
    )


def _axis(split: Split, target: Target) -> int | None:
    """The dimension that is split over the tensor-parallel ranks."""
    if split == "embedding":
        return target.embedding_sharding_dim if target.use_parallel_embedding else None
    return {"none": None, "rows": 0, "columns": 1}[split]


def _rules(model: ModelConfig, target: Target, pp_rank: int) -> Iterator[tuple[Rule, str, str]]:
    """Every rule that applies, with the prefix of its own and of its sources' names.

    On every pipeline rank the layers are counted from 0.
    """
    family = model.family
    switches = {
        "always": True,
        "attention_bias": model.attention_bias,
        "dense_bias": model.dense_bias,
        "qk_layernorm": family.qk_layernorm,
    }
    if pp_rank == 0:
        for rule in family.before:
            yield rule, "", ""
    for local, layer in enumerate(layers_of(pp_rank, model.layers, target.pp)):
        for rule in family.layer:
            if switches[rule.condition]:
                yield rule, f"transformer.layers.{local}.", f"model.layers.{layer}."
    if pp_rank == target.pp - 1:
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
