"""Every check that can be made before the first byte is written."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from trtforge.checkpoint.casting import TARGET_DTYPES
from trtforge.checkpoint.hf_config import ModelConfig, read_hf_config
from trtforge.checkpoint.plan import ConversionPlan, RankFile, plan_single_rank
from trtforge.checkpoint.safetensors_io import StoredTensor, TensorReader, read_header
from trtforge.checkpoint.trtllm_config import trtllm_config
from trtforge.errors import InputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_COMPARE_BYTES = 4 << 20


class MissingWeightsError(InputError):
    """The model directory has no safetensors weights."""


class InvalidIndexError(InputError):
    """The index of a sharded model is not what transformers writes."""


class MissingShardError(InputError):
    """The index names a file that is not there."""


class IndexMismatchError(InputError):
    """The index and the shards disagree about where a tensor lies."""


class DuplicateTensorError(InputError):
    """Two shards hold a tensor of the same name."""


class TiedEmbeddingError(InputError):
    """Embeddings said to be tied are stored twice, with different values."""


class UnsupportedSplitError(InputError):
    """A split over several GPUs, which this version cannot write."""


class UnsupportedDtypeError(InputError):
    """A checkpoint type that this version cannot write."""


def preflight(
    model_dir: Path, *, dtype: str = "bfloat16", tp: int = 1, pp: int = 1
) -> ConversionPlan:
    """Check a Hugging Face model directory and plan its conversion; nothing is written.

    Reads config.json and the headers of the safetensors files; weights only where a tied output
    embedding is stored a second time and has to be compared.

    Raises:
        InputError: One subclass per cause; the message names the file, tensor or key, its value,
            and what to do.
    """
    _check_target(dtype, tp, pp)
    model = read_hf_config(model_dir)
    stored = _read_weights(model_dir)
    ranks = plan_single_rank(model, stored, dtype)
    if model.tie_word_embeddings and "lm_head.weight" in stored:
        _check_tied_copy(stored["model.embed_tokens.weight"], stored["lm_head.weight"])
    return ConversionPlan(
        model_dir=model_dir,
        model=model,
        config=trtllm_config(model, dtype=dtype, tp=tp, pp=pp),
        ranks=ranks,
        notes=_notes(model, ranks, dtype),
    )


def _check_target(dtype: str, tp: int, pp: int) -> None:
    if dtype not in TARGET_DTYPES:
        raise UnsupportedDtypeError(
            "this version cannot write a checkpoint of this type",
            field="checkpoint.dtype",
            value=dtype,
            remedy=f"Supported: {', '.join(TARGET_DTYPES)}",
        )
    for field, ranks in (("checkpoint.tp", tp), ("checkpoint.pp", pp)):
        if ranks != 1:
            raise UnsupportedSplitError(
                "splitting a model over several GPUs is not supported by this version",
                field=field,
                value=ranks,
                remedy="Use 1",
            )


def _read_weights(model_dir: Path) -> dict[str, StoredTensor]:
    """All tensors of the model by name; one file is preferred to shards, as in transformers."""
    if (model_dir / SINGLE_FILE).exists():
        return read_header(model_dir / SINGLE_FILE)
    if not (model_dir / INDEX_FILE).exists():
        raise MissingWeightsError(
            f"there is neither {SINGLE_FILE} nor {INDEX_FILE} in the model directory",
            field="model_dir",
            value=str(model_dir),
            remedy="Only safetensors weights are read: use a revision of the model that has them",
        )
    weight_map = _read_index(model_dir / INDEX_FILE)
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not (model_dir / shard).is_file():
            raise MissingShardError(
                f"{INDEX_FILE} names this file, but it is not there",
                field="file",
                value=str(model_dir / shard),
                remedy="Download the model again",
            )
        for name, tensor in read_header(model_dir / shard).items():
            if name in stored:
                raise DuplicateTensorError(
                    f"both {stored[name].path.name} and {shard} hold this tensor",
                    field="tensor",
                    value=name,
                    remedy="Download the model again into an empty directory",
                )
            stored[name] = tensor
    for name, shard in weight_map.items():
        if name not in stored or stored[name].path.name != shard:
            raise IndexMismatchError(
                f"{INDEX_FILE} places this tensor in {shard}, which does not hold it",
                field="tensor",
                value=name,
                remedy="Download the model again",
            )
    return stored


def _read_index(path: Path) -> dict[str, str]:
    def invalid(problem: str) -> InvalidIndexError:
        return InvalidIndexError(
            problem, field="file", value=str(path), remedy="Download the file again"
        )

    try:
        index: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise invalid(f"not valid JSON ({error})") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise invalid("a JSON object with a non-empty 'weight_map' is expected")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
            raise invalid(f"'weight_map' places {name!r} in {shard!r}, which is not a file name")
    return weight_map


def _check_tied_copy(embedding: StoredTensor, copy: StoredTensor) -> None:
    """transformers uses the embedding; a copy that differs means the config may be wrong."""
    equal = (embedding.dtype, embedding.shape) == (copy.dtype, copy.shape)
    first, second = (memoryview(bytearray(_COMPARE_BYTES)) for _ in range(2))
    with TensorReader() as reader:
        for offset in range(0, embedding.size_bytes, _COMPARE_BYTES):
            if not equal:
                break
            length = min(_COMPARE_BYTES, embedding.size_bytes - offset)
            reader.read_into(embedding, offset, first[:length])
            reader.read_into(copy, offset, second[:length])
            equal = first[:length] == second[:length]
    if not equal:
        raise TiedEmbeddingError(
            f"tie_word_embeddings is true, but this tensor differs from {embedding.name}",
            field="tensor",
            value=copy.name,
            remedy="Set tie_word_embeddings to false in config.json if the output matrix is its "
            "own; else remove the tensor",
        )


def _notes(model: ModelConfig, ranks: tuple[RankFile, ...], dtype: str) -> tuple[str, ...]:
    notes = []
    found = {rows.tensor.dtype for rank in ranks for t in rank.tensors for rows in t.sources}
    if rounded := sorted(found - {TARGET_DTYPES[dtype]}):
        notes.append(f"Weights stored as {', '.join(rounded)} are rounded to {dtype}.")
    if model.sliding_window is not None:
        notes.append(
            f"The sliding window of {model.sliding_window} tokens is not stored in a "
            "TensorRT-LLM checkpoint; it is set when the engine is run (max_attention_window_size)."
        )
    return tuple(notes)
