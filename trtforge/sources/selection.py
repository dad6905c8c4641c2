"""Which files of a source are the model: safetensors weights, configuration, tokenizer, licences.

Only the top level counts. Pickled weights are refused, never skipped in silence.
"""

import json
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

from trtforge.errors import InputError
from trtforge.sources.uri import FIELD

CONFIG = "config.json"
CARD = "README.md"

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_COMPANIONS = frozenset(
    {
        CONFIG,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_PICKLES = (".bin", ".pt", ".pth")


class NoModelConfigError(InputError):
    """The source has no config.json."""


class PickledWeightsError(InputError):
    """The source has weights, but only in formats that run code when they are loaded."""


class NoWeightsError(InputError):
    """The source has no weights at all."""


class BrokenIndexError(InputError):
    """The safetensors index cannot be read."""


class MissingShardError(InputError):
    """The safetensors index names a file that the source does not have."""


def select_files(
    names: Collection[str], read: Callable[[str], bytes], *, source: str
) -> tuple[str, ...]:
    """The names of the model's files, sorted.

    With an index, only the safetensors it names are weights (repositories often hold a second
    copy, such as `consolidated.safetensors`); without one, `model.safetensors`, or else every
    safetensors file.

    Args:
        names: All files of the source, relative; those in folders are ignored.
        read: Reads one small file of the source; called for the index only.
        source: How messages call the source.

    Raises:
        NoModelConfigError, PickledWeightsError, NoWeightsError, BrokenIndexError,
        MissingShardError.
    """
    top = {name for name in names if "/" not in name}
    if not top:
        raise NoWeightsError(
            "there are no files",
            field=FIELD,
            value=source,
            remedy="Check the address; it must hold config.json and *.safetensors at its top level",
        )
    weights = _weights(top, read, source)
    if CONFIG not in top:
        raise NoModelConfigError(
            f"there is no {CONFIG}",
            field=FIELD,
            value=source,
            remedy="Give the model's own top level; an adapter must first be merged into its model",
        )
    companions = {name for name in top if name in _COMPANIONS or _is_licence(name)}
    return tuple(sorted(weights | companions))


def _weights(top: set[str], read: Callable[[str], bytes], source: str) -> set[str]:
    indexes = {name for name in top if name.endswith(".safetensors.index.json")}
    if _INDEX in indexes:
        return _indexed(_INDEX, top, read, source)
    if _WEIGHTS in top:
        return {_WEIGHTS}
    if indexes:
        return set().union(*(_indexed(index, top, read, source) for index in indexes))
    safetensors = {name for name in top if name.endswith(".safetensors")}
    if safetensors:
        return safetensors
    if pickles := sorted(name for name in top if name.endswith(_PICKLES)):
        raise PickledWeightsError(
            f"the only weights are pickled ({_some(pickles)}), and loading a pickle can run code",
            field=FIELD,
            value=source,
            remedy="Convert to safetensors, or choose a repository that has *.safetensors",
        )
    raise NoWeightsError(
        f"there are no *.safetensors files among {_some(sorted(top))}",
        field=FIELD,
        value=source,
        remedy="Choose a source with safetensors weights at its top level",
    )


def _indexed(index: str, top: set[str], read: Callable[[str], bytes], source: str) -> set[str]:
    try:
        weight_map = json.loads(read(index))["weight_map"]
        shards = {str(shard) for shard in weight_map.values()}
    except (ValueError, TypeError, KeyError, AttributeError):
        shards = set()
    if not shards:
        raise BrokenIndexError(
            f"{index} is not a safetensors index: it has no weight_map of tensor to file",
            field=FIELD,
            value=source,
            remedy="Save the model again with save_pretrained, or choose another revision",
        )
    if missing := sorted(shards - top):
        raise MissingShardError(
            f"{index} names {_some(missing)}, which the source does not have at its top level",
            field=FIELD,
            value=source,
            remedy="Complete the upload, or choose another revision",
        )
    return shards | {index}


def _is_licence(name: str) -> bool:
    return any(fnmatchcase(name.upper(), pattern) for pattern in _LICENCES)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
