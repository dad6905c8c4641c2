"""Every check that can be made before the first byte is written."""

from collections.abc import Sequence
from pathlib import Path

from trtforge.checkpoint.casting import TARGET_DTYPES
from trtforge.checkpoint.hf_config import ModelConfig, read_hf_config
from trtforge.checkpoint.plan import ConversionPlan, RankFile, plan_groups
from trtforge.checkpoint.safetensors_io import StoredTensor, TensorReader
from trtforge.checkpoint.split import check_split
from trtforge.checkpoint.target import DEFAULT_TARGET, RELEASES, Target
from trtforge.checkpoint.trtllm_config import trtllm_config
from trtforge.checkpoint.weights import read_weights
from trtforge.errors import InputError

_COMPARE_BYTES = 4 << 20


class ArchitectureTooNewError(InputError):
    """The target release came before the model's architecture."""


class TiedEmbeddingError(InputError):
    """Embeddings said to be tied are stored twice, with different values."""


def preflight(model_dir: Path, target: Target = DEFAULT_TARGET) -> ConversionPlan:
    """Check a Hugging Face model directory and plan its conversion; nothing is written.

    Reads config.json and the headers of the safetensors files; weights only where a tied output
    embedding is stored a second time and has to be compared.

    Raises:
        InputError: One subclass per cause; the message names the file, tensor or key, its value,
            and what to do.
    """
    model = read_hf_config(model_dir)
    _check_release(model, target)
    check_split(model, target)
    stored = read_weights(model_dir)
    groups = plan_groups(model, stored, target)
    if model.tie_word_embeddings and "lm_head.weight" in stored:
        _check_tied_copy(stored["model.embed_tokens.weight"], stored["lm_head.weight"])
    return ConversionPlan(
        model_dir=model_dir,
        model=model,
        target=target,
        config=trtllm_config(model, target),
        groups=groups,
        notes=_notes(model, groups, target),
    )


def _check_release(model: ModelConfig, target: Target) -> None:
    known = [version for version, line in RELEASES.items() if line >= model.family.since]
    if target.version not in known:
        raise ArchitectureTooNewError(
            f"this release does not know {model.architecture}",
            field="checkpoint.target",
            value=target.version,
            remedy=f"Use one of {', '.join(known)}",
        )


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


def _notes(
    model: ModelConfig, groups: Sequence[Sequence[RankFile]], target: Target
) -> tuple[str, ...]:
    notes = []
    found = {
        block.tensor.dtype for ranks in groups for t in ranks[0].tensors for block in t.sources
    }
    if rounded := sorted(found - {TARGET_DTYPES[target.dtype]}):
        notes.append(f"Weights stored as {', '.join(rounded)} are rounded to {target.dtype}.")
    if model.kv_heads < target.tp:
        notes.append(
            f"Each of the {model.kv_heads} key/value heads is held by "
            f"{target.tp // model.kv_heads} of the {target.tp} tensor-parallel ranks."
        )
    if model.vocab_size % target.tp:
        padding = -model.vocab_size % target.tp
        notes.append(
            f"The vocabulary of {model.vocab_size} is filled up with {padding} "
            f"row{'s' if padding > 1 else ''} of zeros to divide by {target.tp}."
        )
    if model.sliding_window is not None:
        notes.append(
            f"The sliding window of {model.sliding_window} tokens is not stored in a "
            "TensorRT-LLM checkpoint; it is set when the engine is run (max_attention_window_size)."
        )
    if not model.family.checked:
        notes.append(
            f"What is written for {model.architecture} was not compared with upstream's converter."
        )
    return tuple(notes)
