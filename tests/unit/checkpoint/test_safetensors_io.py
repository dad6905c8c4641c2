"""Safetensors headers: what the library writes is read; what it would refuse is refused by name."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors import deserialize as library_read
from safetensors.numpy import save as library_save

from trtforge.checkpoint.safetensors_io import (
    CorruptFileError,
    TensorReader,
    TruncatedFileError,
    encode_header,
    read_header,
)
from trtforge.errors import InputError

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def file_of(path: Path, header: Any, data_bytes: int = 8) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data_bytes))
    return path


def entry(start: Any = 0, end: Any = 8, shape: Any = (4,), dtype: Any = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@given(st.dictionaries(names, shapes, max_size=5))
def test_headers_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[int, ...]]
) -> None:
    # The library orders tensors of one type by name, compared as UTF-8.
    ordered = sorted(tensors.items(), key=lambda item: item[0].encode())
    arrays = {name: np.zeros(shape, ml_dtypes.bfloat16) for name, shape in ordered}
    expected = library_save(arrays)
    header = encode_header((name, "BF16", shape) for name, shape in ordered)
    assert expected[: len(header)] == header
    path = tmp_path_factory.getbasetemp() / "library.safetensors"
    path.write_bytes(expected)
    found = read_header(path)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: ("BF16", shape) for name, shape in tensors.items()
    }


@given(data=st.data())
def test_what_is_read_the_library_would_read_too(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Damage one byte of a small file: whenever we accept it, the library does, and agrees."""
    raw = bytearray(library_save({"a": np.arange(3, dtype=np.int16), "b": np.ones((2, 2))}))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(raw)
    try:
        ours = read_header(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 (either outcome is right)
        return
    theirs = dict(library_read(bytes(raw)))
    assert {n: (t.dtype, list(t.shape)) for n, t in ours.items()} == {
        n: (t["dtype"], t["shape"]) for n, t in theirs.items()
    }


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"[]", "not a JSON object"),
        (b"{nonsense}", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ({"a": {"dtype": "BF16"}}, "'a' lacks"),
        ({"a": []}, "'a' lacks"),
        ({"a": entry(dtype="BF17")}, "unknown dtype 'BF17'"),
        ({"a": entry(shape=[-4])}, r"shape \[-4\]"),
        ({"a": entry(shape=[True])}, r"shape \[True\]"),
        ({"a": entry(start=8, end=0)}, r"data_offsets \[8, 0\]"),
        ({"a": entry(start="0")}, "data_offsets"),
        ({"a": entry(shape=[5])}, "needs 10 bytes but has 8"),
        ({"a": entry(), "b": entry(4, 12)}, "'b' overlaps"),
        ({"a": entry(2, 10)}, "gap of 2 bytes before 'a'"),
        ({"a": entry(0, 6, [3])}, "2 bytes follow the last tensor"),
        (b'{"a": {"dtype": "BF16", "shape": [NaN], "data_offsets": [0, 8]}}', "NaN"),
        (b'{"a": {"dtype": "BF16", "shape": [-0], "data_offsets": [0, 0]}}', "-0, which is no"),
        (b'{"\\ud800": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}', "cannot be the"),
        ({"a": entry(shape=[4.0])}, r"shape \[4\.0\]"),
        ({"a": entry(shape=[1e30])}, "shape"),
        ({"a": entry(shape=["4"])}, r"shape \['4'\]"),
        ({"a": entry(shape=[[4]])}, r"shape \[\[4\]\]"),
        ({"a": entry(shape=None)}, "'a' lacks"),
        ({"a": entry(shape=[2**64, 0])}, "18446744073709551616, which is no count"),
        ({"a": entry(shape=[2**62, 2**62])}, "larger than any memory"),
        ({"a": entry(shape=[2**62, 4, 0])}, "larger than any memory"),
        ({"a": entry(end=2**40)}, "needs 8 bytes"),
        ({"a": entry(0, 8, [16], "F4"), "b": entry(8, 9, [1], "F4")}, "ends within a byte"),
        ({"a": entry(), "__metadata__": {"format": 1}}, "__metadata__"),
        ({"a": entry(), "__metadata__": ["pt"]}, "__metadata__"),
        (json.dumps({"a": entry()}).encode() + b"\0", "not valid JSON"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, problem: str) -> None:
    path = file_of(tmp_path / "broken.safetensors", header)
    with pytest.raises(CorruptFileError, match=problem) as refusal:
        read_header(path)
    assert "broken.safetensors" in str(refusal.value)
    with pytest.raises(SafetensorError):
        library_read(path.read_bytes())


def test_a_name_given_twice_is_refused_though_the_library_takes_the_last(tmp_path: Path) -> None:
    one = json.dumps(entry(0, 8))
    path = file_of(tmp_path / "file", f'{{"a": {one}, "a": {one}}}'.encode())
    with pytest.raises(CorruptFileError, match="names 'a' twice"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry() | {"x": 1}}, "unknown key 'x'"),
        ({"a" * 1001: entry()}, "cannot be the name of a tensor"),
        ({"a": entry(shape=[1] * 64 + [4])}, "has shape"),
        ({"a": entry(shape=[0, 2**61, 4], end=0)}, "larger than any memory"),
        (b'{"a": [' + b"0," * 1_000_001 + b"0]}", "more than 1000000 values"),
        (b'{"a": ' + b"[" * 900_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "which is no count"),
    ],
)
def test_what_the_library_may_take_but_no_model_has_is_refused(
    tmp_path: Path, header: Any, problem: str
) -> None:
    path = file_of(tmp_path / "odd.safetensors", header)
    with pytest.raises(CorruptFileError, match=problem) as refusal:
        read_header(path)
    assert len(str(refusal.value)) < 1500


def test_metadata_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "scalar": entry(0, 2, []),
        "empty": entry(2, 2, [0, 7]),
        "after": entry(2, 8, [3]),
    }
    found = read_header(file_of(tmp_path / "file", header))
    assert {name: (t.shape, t.size_bytes) for name, t in found.items()} == {
        "scalar": ((), 2),
        "empty": ((0, 7), 0),
        "after": ((3,), 6),
    }


def test_a_claimed_header_of_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.write((100_000_000).to_bytes(8, "little"))
        stream.truncate(200_000_000)  # sparse
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match="length of 100000000 bytes"):
        read_header(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**64 - 1])
def test_an_absurd_header_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(length.to_bytes(8, "little") + bytes(8))
    with pytest.raises(CorruptFileError, match=f"length of {length} bytes"):
        read_header(path)


@pytest.mark.parametrize("keep", [0, 7, 20, 80])
def test_a_file_cut_anywhere_says_what_is_missing(tmp_path: Path, keep: int) -> None:
    whole = library_save({"a": np.zeros(8, np.float32)})
    path = tmp_path / "file"
    path.write_bytes(whole[:keep])
    with pytest.raises(TruncatedFileError, match=f"bytes expected, {keep} found"):
        read_header(path)


def test_pieces_are_read_from_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "file"
    numbers = np.arange(100, dtype=np.int32)
    path.write_bytes(library_save({"first": np.zeros(3), "numbers": numbers}))
    piece = bytearray(20)
    with TensorReader() as reader:
        reader.read_into(read_header(path)["numbers"], 40, memoryview(piece))
    assert np.frombuffer(piece, np.int32).tolist() == [10, 11, 12, 13, 14]
