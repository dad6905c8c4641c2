"""Damaged models: each ends in a named error, or in the checkpoint the library's reading gives.

Never in a crash, a hang, or a file outside the output directory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize as library_read

from trtforge.checkpoint import convert
from trtforge.checkpoint.casting import SOURCE_DTYPES
from trtforge.checkpoint.safetensors_io import read_header
from trtforge.errors import InputError

MODEL = Path(__file__).parents[2] / "fixtures" / "hf-models" / "llama_untied"
WEIGHTS = "model.safetensors"
BF16 = ml_dtypes.bfloat16
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

# Edits of bytes: (kind, where, what). Positions are taken modulo the length.
positions = st.integers(0, 2**20)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), positions, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("delete"), positions, st.integers(1, 40)),
        st.tuples(st.just("copy"), positions, st.integers(1, 200)),
    ),
    min_size=1,
    max_size=4,
)
# Numbers that break arithmetic, in place of those of a header.
odd_numbers = st.sampled_from(
    [-1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, 1.0, 0.5, -0.0, 1e300, float("nan"),
     float("inf"), True, None, "8", [], [1], {}]
) | st.integers(-5, 10_000)  # fmt: skip
odd_values = odd_numbers | st.text(max_size=5) | st.lists(odd_numbers, max_size=4)


def damaged(raw: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    data = bytearray(raw)
    for kind, position, what in changes:
        at = position % max(1, len(data))
        if kind == "set":
            data[at : at + len(what)] = what
        elif kind == "insert":
            data[at:at] = what
        elif kind == "delete":
            del data[at : at + what]
        else:
            data[at:at] = data[at : at + what]
    return bytes(data)


def header_of(raw: bytes) -> tuple[bytes, bytes]:
    """The JSON of a safetensors file, and what follows it."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:end], raw[end:]


def file_with(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@contextmanager
def fresh_model(factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the model in a directory of its own, which is removed again."""
    root = factory.mktemp("fuzz")
    try:
        shutil.copytree(MODEL, root / "model")
        yield root / "model"
    finally:
        shutil.rmtree(root)


def shard(model: Path) -> None:
    """Two shards and an index instead of one file."""
    raw = (model / WEIGHTS).read_bytes()
    header, data = header_of(raw)
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    weight_map = {}
    for number, name in enumerate(SHARDS):
        part, body = {}, b""
        for tensor in sorted(entries)[number::2]:
            start, end = entries[tensor]["data_offsets"]
            offsets = [len(body), len(body) + end - start]
            part[tensor] = entries[tensor] | {"data_offsets": offsets}
            body += data[start:end]
            weight_map[tensor] = name
        (model / name).write_bytes(file_with(json.dumps(part).encode(), body))
    (model / WEIGHTS).unlink()
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def library_tensors(model: Path) -> dict[str, np.ndarray]:
    """What the safetensors library reads from the model's weights, as bfloat16."""
    return {
        name: np.frombuffer(tensor["data"], SOURCE_DTYPES[tensor["dtype"]]).astype(BF16)
        for path in sorted(model.glob("*.safetensors"))
        for name, tensor in library_read(path.read_bytes())
    }


def check(model: Path) -> bool:
    """Convert; whether that succeeded. Either way nothing wrong may have happened."""
    root = model.parent
    try:
        files = convert(model, root / "out")
    except InputError as error:
        assert error.field  # noqa: PT017 (either outcome is right)
        assert error.remedy  # noqa: PT017
        line = str(error)
        assert "\n" not in line
        line.encode()
        assert len(line) < 5000
        assert [path.name for path in root.iterdir()] == ["model"]
        return False
    assert sorted(path.name for path in root.iterdir()) == ["model", "out"]
    assert sorted(path.name for path in (root / "out").iterdir()) == [f.path for f in files]
    source = library_tensors(model)
    written = dict(library_read((root / "out" / "rank0.safetensors").read_bytes()))
    pairs = {
        "lm_head.weight": ["lm_head.weight"],
        "transformer.ln_f.weight": ["model.norm.weight"],
        "transformer.vocab_embedding.weight": ["model.embed_tokens.weight"],
        "transformer.layers.0.attention.qkv.weight": [
            f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"
        ],
        "transformer.layers.1.mlp.fc.weight": ["model.layers.1.mlp.gate_proj.weight"],
    }
    for target, sources in pairs.items():
        found = np.frombuffer(written[target]["data"], BF16).astype(np.float32)
        expected = np.concatenate([source[name] for name in sources]).astype(np.float32)
        assert np.array_equal(found, expected, equal_nan=True)
    return True


def test_the_undamaged_model_is_converted(tmp_path_factory: pytest.TempPathFactory) -> None:
    with fresh_model(tmp_path_factory) as model:
        assert check(model)
    with fresh_model(tmp_path_factory) as model:
        shard(model)
        assert check(model)


@settings(max_examples=150, deadline=None)
@given(changes=edits)
def test_bytes_of_a_header_are_changed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, Any]]
) -> None:
    with fresh_model(tmp_path_factory) as model:
        header, data = header_of((model / WEIGHTS).read_bytes())
        (model / WEIGHTS).write_bytes(file_with(damaged(header, changes), data))
        check(model)


@settings(max_examples=100, deadline=None)
@given(changes=edits)
def test_bytes_of_a_file_are_changed_with_its_length_left_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, Any]]
) -> None:
    with fresh_model(tmp_path_factory) as model:
        raw = (model / WEIGHTS).read_bytes()
        front = 8 + len(header_of(raw)[0])
        (model / WEIGHTS).write_bytes(damaged(raw[:front], changes) + raw[front:])
        check(model)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_numbers_and_words_of_a_header_are_replaced(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with fresh_model(tmp_path_factory) as model:
        header, body = header_of((model / WEIGHTS).read_bytes())
        entries = json.loads(header)
        name = data.draw(st.sampled_from(sorted(entries)))
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "whole", "renamed"]))
        match key:
            case "whole":
                entries[name] = data.draw(odd_values)
            case "renamed":
                other = data.draw(st.sampled_from(sorted(entries)) | st.text(max_size=8))
                entries[other] = entries.pop(name)
            case "dtype":
                known = st.sampled_from(["F16", "F32", "I8", "F4", "BOOL", "bf16"])
                entries[name] = entries[name] | {"dtype": data.draw(known | odd_values)}
            case _:
                values = data.draw(odd_values)
                if data.draw(st.booleans()):
                    values = list(entries[name].get(key, [0, 0]))
                    at = data.draw(st.integers(0, max(0, len(values) - 1)))
                    values[at : at + 1] = [data.draw(odd_numbers)]
                entries[name] = entries[name] | {key: values}
        (model / WEIGHTS).write_bytes(file_with(json.dumps(entries).encode(), body))
        check(model)


@settings(max_examples=80, deadline=None)
@given(keep=st.integers(0, 2**20))
def test_the_file_is_cut(tmp_path_factory: pytest.TempPathFactory, keep: int) -> None:
    with fresh_model(tmp_path_factory) as model:
        raw = (model / WEIGHTS).read_bytes()
        length = keep % len(raw)
        (model / WEIGHTS).write_bytes(raw[:length])
        assert not check(model)


@settings(max_examples=100, deadline=None)
@given(changes=edits, in_index=st.booleans())
def test_bytes_of_an_index_or_a_shard_are_changed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, Any]], in_index: bool
) -> None:
    with fresh_model(tmp_path_factory) as model:
        shard(model)
        if in_index:
            (model / INDEX).write_bytes(damaged((model / INDEX).read_bytes(), changes))
        else:
            header, data = header_of((model / SHARDS[0]).read_bytes())
            (model / SHARDS[0]).write_bytes(file_with(damaged(header, changes), data))
        check(model)


@settings(max_examples=80, deadline=None)
@given(
    place=st.sampled_from(
        ["../outside.safetensors", "/outside.safetensors", "..", ".", "", "a/b", "a\0b", *SHARDS]
    )
    | st.text(max_size=10),
    number=st.integers(0, 100),
)
def test_an_index_places_a_tensor_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, place: str, number: int
) -> None:
    with fresh_model(tmp_path_factory) as model:
        shard(model)
        weight_map = json.loads((model / INDEX).read_text())["weight_map"]
        name = sorted(weight_map)[number % len(weight_map)]
        same = weight_map[name] == place
        weight_map[name] = place
        (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert check(model) == same


@settings(max_examples=100, deadline=None)
@given(changes=edits)
def test_whatever_our_reader_takes_the_library_takes(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, Any]]
) -> None:
    raw = damaged((MODEL / WEIGHTS).read_bytes()[:4096], changes)
    header, data = header_of(raw) if len(raw) >= 8 else (b"", b"")
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(raw if len(raw) < 8 else file_with(header, data))
    try:
        ours = read_header(path)
    except InputError:
        return
    theirs = dict(library_read(path.read_bytes()))
    assert {n: (t.dtype, list(t.shape)) for n, t in ours.items()} == {
        n: (t["dtype"], t["shape"]) for n, t in theirs.items()
    }


@settings(max_examples=80, deadline=None)
@given(changes=edits)
def test_bytes_of_the_config_are_changed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, Any]]
) -> None:
    with fresh_model(tmp_path_factory) as model:
        path = model / "config.json"
        path.write_bytes(damaged(path.read_bytes(), changes))
        check(model)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", [WEIGHTS, INDEX, SHARDS[0], "config.json"])
def test_something_else_stands_in_the_place_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> None:
    with fresh_model(tmp_path_factory) as model:
        if name in (INDEX, *SHARDS):
            shard(model)
        (model / name).unlink()
        make(model / name)
        assert not check(model)
