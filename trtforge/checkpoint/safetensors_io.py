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
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trtforge.errors import InputError

_LENGTH_BYTES = 8
_ALIGNMENT_BYTES = 8
# The library refuses larger headers too; no real model comes near.
_MAX_HEADER_BYTES = 100_000_000
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


class TruncatedFileError(InputError):
    """A safetensors file is shorter than its header says."""


class CorruptFileError(InputError):
    """A safetensors file whose header contradicts itself or the file."""


class LfsPointerError(InputError):
    """A git-lfs pointer stands where the weights should be."""


@dataclass(frozen=True)
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
        TruncatedFileError: The file ends before its last tensor.
        LfsPointerError: The file is a git-lfs pointer.
        CorruptFileError: Anything else that the format forbids.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
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
        if not 2 <= header_bytes <= _MAX_HEADER_BYTES:
            raise _corrupt(path, f"the header claims a length of {header_bytes} bytes")
        if _LENGTH_BYTES + header_bytes > file_bytes:
            raise _truncated(path, _LENGTH_BYTES + header_bytes, file_bytes)
        entries = _parse_json_object(path, stream.read(header_bytes))
    entries.pop("__metadata__", None)
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

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = self._files.enter_context(path.open("rb")).fileno()
        return self._descriptors[path]


def _parse_json_object(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _corrupt(path, f"the header names {twice!r} twice")
        return found

    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"the header is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise _corrupt(path, "the header is not a JSON object")
    return parsed


def _parse_entry(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]}:
            pass
        case _:
            raise _corrupt(path, f"the header entry of {name!r} lacks dtype, shape or data_offsets")
    if dtype not in _DTYPE_BITS:
        raise _corrupt(path, f"{name!r} has the unknown dtype {dtype!r}")
    if not all(_is_count(number) for number in (*shape, start, end)) or start > end:
        raise _corrupt(path, f"{name!r} has shape {shape!r} and data_offsets [{start!r}, {end!r}]")
    if end - start != size_in_bytes(dtype, shape):
        needed = size_in_bytes(dtype, shape)
        raise _corrupt(
            path,
            f"{name!r} ({dtype} {shape}) needs {needed} bytes but has {end - start}",
        )
    return StoredTensor(path, name, dtype, tuple(shape), data_start + start, end - start)


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
