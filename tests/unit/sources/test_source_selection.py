"""Which files of a source are the model."""

import json
from collections.abc import Callable

import pytest

from trtforge.errors import InputError
from trtforge.sources import (
    BrokenIndexError,
    MissingShardError,
    NoModelConfigError,
    NoWeightsError,
    PickledWeightsError,
    select_files,
)


def _index(*shards: str) -> Callable[[str], bytes]:
    weight_map = {f"tensor{i}": shard for i, shard in enumerate(shards)}
    return lambda _: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def _nothing(name: str) -> bytes:
    raise AssertionError(f"{name} was read")


def _select(names: set[str], read: Callable[[str], bytes] = _nothing) -> set[str]:
    return set(select_files(names, read, source="hf://org/name@main"))


def test_takes_weights_configuration_tokenizer_and_licences() -> None:
    wanted = {
        "LICENSE",
        "License.md",
        "NOTICE.txt",
        "USE_POLICY.md",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    }
    others = {".gitattributes", "README.md", "modeling_x.py", "model.gguf", "logo.png", "a.bin"}
    assert _select(wanted | others) == wanted


def test_only_the_top_level_counts() -> None:
    assert _select({"config.json", "model.safetensors", "onnx/config.json", "x/LICENSE"}) == {
        "config.json",
        "model.safetensors",
    }


def test_with_an_index_only_the_shards_it_names_are_weights() -> None:
    index = "model.safetensors.index.json"
    names = {"config.json", index, "a.safetensors", "b.safetensors", "consolidated.safetensors"}
    chosen = _select(names, _index("a.safetensors", "b.safetensors", "a.safetensors"))
    assert chosen == {"config.json", index, "a.safetensors", "b.safetensors"}


def test_the_indexes_of_other_copies_are_left_out() -> None:
    index = "model.safetensors.index.json"
    other = "consolidated.safetensors.index.json"
    assert other not in _select(
        {"config.json", index, other, "a.safetensors"}, _index("a.safetensors")
    )
    assert other not in _select({"config.json", other, "model.safetensors"})


def test_without_an_index_the_usual_name_wins_over_second_copies() -> None:
    assert _select({"config.json", "model.safetensors", "model.fp16.safetensors"}) == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize(
    ("names", "read", "error", "says"),
    [
        (set(), _nothing, NoWeightsError, "no files"),
        ({"model.safetensors"}, _nothing, NoModelConfigError, r"config\.json"),
        ({"config.json", "README.md"}, _nothing, NoWeightsError, "safetensors"),
        (
            {"config.json", "pytorch_model.bin"},
            _nothing,
            PickledWeightsError,
            r"pytorch_model\.bin.*Convert to safetensors",
        ),
        ({"config.json", "consolidated.00.pth"}, _nothing, PickledWeightsError, "safetensors"),
        ({"config.json", "model.pt"}, _nothing, PickledWeightsError, "safetensors"),
        (
            {"config.json", "model.safetensors.index.json", "a.safetensors"},
            _index("a.safetensors", "b.safetensors"),
            MissingShardError,
            r"b\.safetensors",
        ),
        (
            {"config.json", "model.safetensors.index.json"},
            _index("../../secret.safetensors"),
            MissingShardError,
            "secret",
        ),
        (
            {"config.json", "model.safetensors.index.json"},
            lambda _: b"<html>",
            BrokenIndexError,
            "weight_map",
        ),
        (
            {"config.json", "model.safetensors.index.json"},
            lambda _: b"[]",
            BrokenIndexError,
            "weight_map",
        ),
    ],
)
def test_says_what_is_missing(
    names: set[str], read: Callable[[str], bytes], error: type[InputError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        _select(names, read)
    assert caught.value.field == "model.source"
