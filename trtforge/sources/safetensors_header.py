"""Is a safetensors file whole? Answered from its header alone.

Format: 8 bytes with the header's length (little-endian), the header as JSON with each tensor's
`data_offsets`, then the data, without gaps (https://github.com/huggingface/safetensors#format).
"""

import json
from pathlib import Path

from trtforge.errors import InputError

_LENGTH_BYTES = 8
# The safetensors library refuses longer headers.
_MAX_HEADER_BYTES = 100_000_000
_LFS_POINTER = b"version https://git-lfs"


class BrokenSafetensorsError(InputError):
    """The file is cut off, has bytes too many, or is not safetensors at all."""


class LfsPointerError(BrokenSafetensorsError):
    """The file is the small text that Git LFS leaves in place of the weights."""


def check_safetensors(path: Path) -> None:
    """Check that the file has exactly the bytes its header promises.

    Raises:
        BrokenSafetensorsError: names the file, the expected and the actual size in bytes.
        LfsPointerError: a clone without its LFS files.
    """
    actual_bytes = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        if start == _LFS_POINTER[:_LENGTH_BYTES]:
            raise LfsPointerError(
                "the file is a Git LFS pointer, not the weights",
                field="file",
                value=path.name,
                remedy="Run `git lfs pull` in the clone, or use hf://org/name",
            )
        header_bytes = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES:
            raise _cut_off(path, f"at least {_LENGTH_BYTES}", actual_bytes)
        if header_bytes > _MAX_HEADER_BYTES:
            raise _not_safetensors(path, f"a header of {header_bytes} bytes")
        if _LENGTH_BYTES + header_bytes > actual_bytes:
            raise _cut_off(path, f"at least {_LENGTH_BYTES + header_bytes}", actual_bytes)
        header = stream.read(header_bytes)
    try:
        tensors = json.loads(header)
        data_bytes = max(
            (t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"),
            default=0,
        )
        expected_bytes = _LENGTH_BYTES + header_bytes + int(data_bytes)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise _not_safetensors(path, "a header that does not list tensors") from None
    if actual_bytes < expected_bytes:
        raise _cut_off(path, str(expected_bytes), actual_bytes)
    if actual_bytes > expected_bytes:
        raise BrokenSafetensorsError(
            f"the file has {actual_bytes} bytes, but its header describes {expected_bytes}",
            field="file",
            value=path.name,
            remedy="Get the file again; if it comes out the same, the source's copy is broken",
        )


def _cut_off(path: Path, expected: str, actual_bytes: int) -> BrokenSafetensorsError:
    return BrokenSafetensorsError(
        f"the file is cut off: its header says {expected} bytes, it has {actual_bytes}",
        field="file",
        value=path.name,
        remedy="Get the file again; if it comes out the same, the source's copy is broken",
    )


def _not_safetensors(path: Path, why: str) -> BrokenSafetensorsError:
    return BrokenSafetensorsError(
        f"the file is not safetensors: it has {why}",
        field="file",
        value=path.name,
        remedy="Choose a source whose *.safetensors files are real",
    )
