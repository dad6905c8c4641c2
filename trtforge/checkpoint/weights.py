"""Where the weights of a Hugging Face model directory lie: in one safetensors file, or in shards.

The index of a sharded model is input like any other: its file names must be plain names, so that
nothing outside the directory is opened. The files themselves may be symbolic links, of which the
Hub's cache consists.
"""

import os
from pathlib import Path

from trtforge.checkpoint.regular_file import read_whole
from trtforge.checkpoint.safetensors_io import MAX_NAME_CHARACTERS, StoredTensor, read_header
from trtforge.checkpoint.strict_json import is_text, parse_object
from trtforge.errors import InputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The index of a model with 100 000 tensors has 9 MB.
_MAX_INDEX_BYTES = 32 << 20
# All headers are held in memory together; the largest public models have 100 000 tensors.
MAX_TENSORS = 250_000
_MAX_FILE_NAME_BYTES = 255


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


class TooManyTensorsError(InputError):
    """The files hold more tensors than any model has."""


def read_weights(model_dir: Path) -> dict[str, StoredTensor]:
    """All tensors of a model by name; one file is preferred to shards, as in transformers.

    Only headers are read; memory is bounded whatever the files contain.

    Raises:
        MissingWeightsError, InvalidIndexError, MissingShardError, IndexMismatchError,
        DuplicateTensorError, TooManyTensorsError: One per cause; each names the file.
        InputError: What `read_header` raises.
    """
    # A link into nowhere is there: it gets a message of its own.
    if os.path.lexists(model_dir / SINGLE_FILE):
        stored = read_header(model_dir / SINGLE_FILE)
        _limit(stored, model_dir / SINGLE_FILE)
        return stored
    if not os.path.lexists(model_dir / INDEX_FILE):
        raise MissingWeightsError(
            f"there is neither {SINGLE_FILE} nor {INDEX_FILE} in the model directory",
            field="model_dir",
            value=str(model_dir),
            remedy="Only safetensors weights are read: use a revision of the model that has them",
        )
    return _read_shards(model_dir, _read_index(model_dir / INDEX_FILE))


def _read_shards(model_dir: Path, weight_map: dict[str, str]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not os.path.lexists(model_dir / shard):
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
        _limit(stored, model_dir / shard)
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
        index = parse_object(read_whole(path, _MAX_INDEX_BYTES))
    except ValueError as error:
        raise invalid(f"the index {error}") from error
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise invalid("a JSON object with a non-empty 'weight_map' is expected")
    for name, shard in weight_map.items():
        if not is_text(name, MAX_NAME_CHARACTERS):
            raise invalid(f"'weight_map' has {name[:40]!r}…, which cannot be the name of a tensor")
        if not _is_plain_name(shard):
            found = repr(shard)[:300]
            raise invalid(f"'weight_map' places {name!r} in {found}, which is not a file name")
    return weight_map


def _is_plain_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and is_text(name, _MAX_FILE_NAME_BYTES)
        and 0 < len(name.encode()) <= _MAX_FILE_NAME_BYTES
        and name not in (".", "..")
        and not any(character in name for character in "/\\\0")
    )


def _limit(stored: dict[str, StoredTensor], path: Path) -> None:
    if len(stored) > MAX_TENSORS:
        raise TooManyTensorsError(
            f"with this file the model has {len(stored)} tensors, more than {MAX_TENSORS}",
            field="file",
            value=str(path),
            remedy="Check that the directory holds one model, as saved by transformers",
        )
