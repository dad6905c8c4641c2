"""The safetensors container: headers read with every bound checked, tensors read in pieces.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header
padded with spaces to a multiple of 8, then the tensors without gaps. The header is parsed here
rather than by the library so that a broken file is reported by name, with the expected and the
found number of bytes, and so that tensors can be read with `pread` into a small buffer instead of
being mapped: resident memory stays bounded and measurable.
"""

import json
import math
import os
import reprlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from trtforge.checkpoint.regular_file import open_regular
from trtforge.checkpoint.strict_json import is_text, parse_object
from trtforge.errors import InputError

_LENGTH_BYTES = 8
_ALIGNMENT_BYTES = 8
# Memory stays bounded whatever a file says. The largest headers known, of models with 100 000
# tensors, would fit; the library's own limit is 100 MB.
MAX_HEADER_BYTES = 16 << 20
MAX_NAME_CHARACTERS = 1000
# What numpy takes, and the product that still fits into a signed 64-bit count of bits.
_MAX_DIMENSIONS = 64
_MAX_BITS = 2**63 - 1
_DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100


class TruncatedFileError(InputError):
    """A safetensors file is shorter than its header says."""


class CorruptFileError(InputError):
    """A safetensors file whose header contradicts itself or the file."""


class LfsPointerError(InputError):
    """A git-lfs pointer stands where the weights should be."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `size_bytes` bytes at `start_bytes` of the file `path`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start_bytes: int
    size_bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, in file order; no tensor data are read.

    Raises:
        NotRegularFileError, UnreadableFileError: It cannot be opened as a file.
        TruncatedFileError: The file ends before its last tensor.
        LfsPointerError: The file is a git-lfs pointer.
        CorruptFileError: Anything else that the format forbids.
    """
    with os.fdopen(open_regular(path), "rb") as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        prefix = stream.read(_LENGTH_BYTES)
        if prefix == b"version ":
            raise LfsPointerError(
                "this is a git-lfs pointer, not the weights themselves",
                field="file",
                value=str(path),
                remedy="Run 'git lfs pull' in the model directory, or download the model again",
            )
        if len(prefix) < _LENGTH_BYTES:
            raise _truncated(path, _LENGTH_BYTES, file_bytes)
        header_bytes = int.from_bytes(prefix, "little")
        if not 2 <= header_bytes <= MAX_HEADER_BYTES:
            raise _corrupt(path, f"the header claims a length of {header_bytes} bytes")
        if _LENGTH_BYTES + header_bytes > file_bytes:
            raise _truncated(path, _LENGTH_BYTES + header_bytes, file_bytes)
        raw = stream.read(header_bytes)
    if len(raw) < header_bytes:
        raise _truncated(path, _LENGTH_BYTES + header_bytes, _LENGTH_BYTES + len(raw))
    try:
        entries = parse_object(raw)
    except ValueError as error:
        raise _corrupt(path, f"the header {error}") from error
    _check_metadata(path, entries.pop("__metadata__", None))
    data_start = _LENGTH_BYTES + header_bytes
    tensors = sorted(
        (_parse_entry(path, name, entry, data_start) for name, entry in entries.items()),
        key=lambda tensor: (tensor.start_bytes, tensor.size_bytes),
    )
    _check_coverage(path, tensors, data_start, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def size_in_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of the safetensors type `dtype`; fractions of a byte are rounded up."""
    return -(-math.prod(shape) * _DTYPE_BITS[dtype] // 8)


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Length, header and padding for tensors given as (name, dtype, shape), in data order.

    Byte for byte what the safetensors library writes for the same tensors. No `__metadata__`:
    TensorRT-LLM calls `safetensors.torch.save_file` without it.
    """
    entries: dict[str, object] = {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + size_in_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


class TensorReader:
    """Reads pieces of stored tensors; keeps each file open until the `with` block ends."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()

    def read_into(self, tensor: StoredTensor, offset_bytes: int, piece: memoryview) -> None:
        """Fill `piece` with the bytes of `tensor` from `offset_bytes` on.

        Raises:
            TruncatedFileError: The file became shorter since its header was read.
        """
        descriptor = self._descriptor(tensor.path)
        position = tensor.start_bytes + offset_bytes
        done = 0
        while done < len(piece):
            count = os.preadv(descriptor, [piece[done:]], position + done)
            if count == 0:
                size = os.fstat(descriptor).st_size
                raise _truncated(tensor.path, position + len(piece), size)
            done += count

    def _open(self, path: Path) -> int:
        descriptor = open_regular(path)
        self._files.callback(os.close, descriptor)
        return descriptor

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = self._open(path)
        return self._descriptors[path]


def _check_metadata(path: Path, metadata: object) -> None:
    match metadata:
        case None:
            return
        case dict() if all(
            is_text(text, MAX_HEADER_BYTES) for item in metadata.items() for text in item
        ):
            return
    raise _corrupt(path, "__metadata__ is not a mapping from text to text")


def _parse_entry(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    if not is_text(name, MAX_NAME_CHARACTERS):
        raise _corrupt(path, f"{_short(name)} cannot be the name of a tensor")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end], **rest}:
            pass
        case _:
            raise _corrupt(path, f"the header entry of {name!r} lacks dtype, shape or data_offsets")
    if rest:
        raise _corrupt(
            path, f"the header entry of {name!r} has the unknown key {_short(min(map(str, rest)))}"
        )
    if dtype not in _DTYPE_BITS:
        raise _corrupt(path, f"{name!r} has the unknown dtype {_short(dtype)}")
    counts = all(_is_count(number) for number in (*shape, start, end))
    if not counts or start > end or len(shape) > _MAX_DIMENSIONS:
        offsets = f"[{_short(start)}, {_short(end)}]"
        raise _corrupt(path, f"{name!r} has shape {_short(shape)} and data_offsets {offsets}")
    # Dimensions of length zero do not excuse the others: readers multiply those first.
    if math.prod(n for n in shape if n) * _DTYPE_BITS[dtype] > _MAX_BITS:
        raise _corrupt(path, f"{name!r} ({dtype} {_short(shape)}) is larger than any memory")
    if math.prod(shape) * _DTYPE_BITS[dtype] % 8:
        raise _corrupt(path, f"{name!r} ({dtype} {_short(shape)}) ends within a byte")
    needed = size_in_bytes(dtype, shape)
    if end - start != needed:
        raise _corrupt(
            path, f"{name!r} ({dtype} {_short(shape)}) needs {needed} bytes but has {end - start}"
        )
    return StoredTensor(path, name, dtype, tuple(shape), data_start + start, needed)


def _check_coverage(
    path: Path, tensors: list[StoredTensor], data_start: int, file_bytes: int
) -> None:
    expected = data_start
    for tensor in tensors:
        if tensor.start_bytes < expected:
            raise _corrupt(path, f"{tensor.name!r} overlaps the tensor before it")
        if tensor.start_bytes > expected:
            gap = tensor.start_bytes - expected
            raise _corrupt(path, f"there is a gap of {gap} bytes before {tensor.name!r}")
        expected += tensor.size_bytes
    if file_bytes < expected:
        raise _truncated(path, expected, file_bytes)
    if file_bytes > expected:
        raise _corrupt(path, f"{file_bytes - expected} bytes follow the last tensor")


def _short(value: object) -> str:
    """`repr` of something of any size, for a message."""
    return _REPR.repr(value)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _truncated(path: Path, expected_bytes: int, found_bytes: int) -> TruncatedFileError:
    return TruncatedFileError(
        f"the file is truncated: {expected_bytes} bytes expected, {found_bytes} found",
        field="file",
        value=str(path),
        remedy="Download the file again",
    )


def _corrupt(path: Path, problem: str) -> CorruptFileError:
    return CorruptFileError(
        f"not a valid safetensors file: {problem}",
        field="file",
        value=str(path),
        remedy="Download the file again; if that does not help, the model must be saved anew",
    )
