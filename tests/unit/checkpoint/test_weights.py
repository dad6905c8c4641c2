"""Finding the weights of a model: one file or shards, and nothing outside the directory."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtforge.checkpoint import weights
from trtforge.checkpoint.regular_file import (
    FileTooLargeError,
    NotRegularFileError,
    UnreadableFileError,
    open_regular,
    read_whole,
)
from trtforge.checkpoint.safetensors_io import encode_header
from trtforge.checkpoint.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    DuplicateTensorError,
    IndexMismatchError,
    InvalidIndexError,
    MissingShardError,
    MissingWeightsError,
    TooManyTensorsError,
    read_weights,
)
from trtforge.errors import InputError


def write_shard(path: Path, *names: str) -> None:
    path.write_bytes(encode_header((name, "BF16", (2,)) for name in names) + bytes(4 * len(names)))


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards with a tensor each, and a file outside that must not be read."""
    directory = tmp_path / "model"
    directory.mkdir()
    write_shard(directory / "one.safetensors", "a")
    write_shard(directory / "two.safetensors", "b")
    write_index(directory, {"a": "one.safetensors", "b": "two.safetensors"})
    write_shard(tmp_path / "outside.safetensors", "b")
    return directory


def test_shards_are_read_as_one_model(sharded: Path) -> None:
    found = read_weights(sharded)
    assert {name: tensor.path.name for name, tensor in found.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_the_single_file_is_preferred(sharded: Path) -> None:
    write_shard(sharded / SINGLE_FILE, "c")
    assert list(read_weights(sharded)) == ["c"]


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/two.safetensors",
        "..",
        ".",
        "",
        "a\0b.safetensors",
        "..\\outside.safetensors",
        "x" * 256,
        "ü" * 128,
        "\ud800.safetensors",
        3,
        None,
        ["two.safetensors"],
        True,
    ],
)
def test_an_index_names_plain_files_only(sharded: Path, name: Any) -> None:
    write_index(sharded, {"a": "one.safetensors", "b": name})
    with pytest.raises(InvalidIndexError, match="which is not a file name") as refusal:
        read_weights(sharded)
    assert str(sharded / INDEX_FILE) in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    str(refusal.value).encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "not valid JSON"),
        (b'\xff\xfe{\x00}\x00"', "not UTF-8"),
        (b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "'a' twice"),
        (b'{"weight_map": NaN}', "not valid JSON"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"weight_map": ' + b"9" * 5000 + b"}", "which is no count"),
        (b"[]", "not a JSON object"),
        (b"{}", "non-empty 'weight_map'"),
        (b'{"weight_map": {}}', "non-empty 'weight_map'"),
        (b'{"weight_map": ["one.safetensors"]}', "non-empty 'weight_map'"),
        (b'{"weight_map": {"\\ud800": "one.safetensors"}}', "cannot be the name of a tensor"),
        (b'{"weight_map": {"%s": "one.safetensors"}}' % (b"a" * 5000), "cannot be the name"),
        (b"", "not valid JSON"),
    ],
)
def test_an_index_that_is_none_is_refused(sharded: Path, content: bytes, problem: str) -> None:
    (sharded / INDEX_FILE).write_bytes(content)
    with pytest.raises(InvalidIndexError, match=problem) as refusal:
        read_weights(sharded)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize(
    ("weight_map", "error", "named"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, MissingShardError, "three"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, IndexMismatchError, "'a'"),
        ({"ghost": "one.safetensors"}, IndexMismatchError, "'ghost'"),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_refused(
    sharded: Path, weight_map: dict[str, str], error: type[InputError], named: str
) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(error, match=named):
        read_weights(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    write_shard(sharded / "two.safetensors", "b", "a")
    with pytest.raises(DuplicateTensorError, match=r"one\.safetensors and two\.safetensors"):
        read_weights(sharded)


def test_no_weights_at_all_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="neither"):
        read_weights(tmp_path)


def test_links_are_followed_as_in_the_hubs_cache(sharded: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "0123abcd"
    blob.parent.mkdir()
    (sharded / "one.safetensors").rename(blob)
    (sharded / "one.safetensors").symlink_to(blob)
    assert set(read_weights(sharded)) == {"a", "b"}


@pytest.mark.parametrize("name", [SINGLE_FILE, INDEX_FILE, "one.safetensors"])
def test_a_link_into_nowhere_is_named(sharded: Path, name: str) -> None:
    (sharded / name).unlink(missing_ok=True)
    (sharded / name).symlink_to(sharded / "gone")
    with pytest.raises(UnreadableFileError, match="No such file") as refusal:
        read_weights(sharded)
    assert refusal.value.value == str(sharded / name)


def test_a_link_to_itself_is_named(sharded: Path) -> None:
    (sharded / SINGLE_FILE).symlink_to(SINGLE_FILE)
    with pytest.raises(UnreadableFileError, match="symbolic links"):
        read_weights(sharded)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the name of a socket is short
        server.bind(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", [SINGLE_FILE, INDEX_FILE, "one.safetensors"])
@pytest.mark.parametrize("make", [pipe, Path.mkdir, device, listening])
def test_what_is_no_file_is_refused_without_waiting(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], name: str
) -> None:
    monkeypatch.chdir(sharded)
    (sharded / name).unlink(missing_ok=True)
    make(sharded / name)
    with pytest.raises((NotRegularFileError, UnreadableFileError)) as refusal:
        read_weights(sharded)
    assert refusal.value.value == str(sharded / name)


def test_a_file_that_is_refused_is_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(NotRegularFileError):
            open_regular(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_small_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_whole(path, 5) == b"12345"
    with pytest.raises(FileTooLargeError, match="larger than 4 bytes"):
        read_whole(path, 4)


def test_the_number_of_tensors_is_bounded(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_TENSORS", 1)
    with pytest.raises(TooManyTensorsError, match="2 tensors, more than 1"):
        read_weights(sharded)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
file_names = st.sampled_from(["one.safetensors", "two.safetensors"]) | st.text(max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weight_map=json_values | st.dictionaries(st.sampled_from("ab") | st.text(), file_names))
def test_whatever_an_index_says_only_files_of_the_directory_are_read(
    sharded: Path, weight_map: Any
) -> None:
    write_index(sharded, weight_map)
    try:
        found = read_weights(sharded)
    except InputError as error:
        assert error.field  # noqa: PT017 (either outcome is right)
        assert error.remedy  # noqa: PT017
        return
    assert {tensor.path.parent for tensor in found.values()} == {sharded}
