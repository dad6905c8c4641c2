"""Number formats: from what a model is stored in to what the checkpoint is written in."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# safetensors name → numpy type; what conversion can read.
SOURCE_DTYPES: Mapping[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
# TensorRT-LLM name → safetensors name; what conversion can write.
TARGET_DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16"}

# Few enough for the temporaries to stay in a cache; in smaller ones threads wait for each other.
_CHUNK_NUMBERS = 1 << 18
# The upper halves of 32-bit numbers seen as 16-bit ones; safetensors is little-endian, and so is
# every machine that TensorRT-LLM runs on.
_UPPER = slice(1, None, 2)


def cast(source: memoryview, source_dtype: str, target: memoryview, target_dtype: str) -> None:
    """Convert the numbers of `source` into `target`, rounding to nearest, ties to even.

    Finite numbers beyond the largest of the target become infinite, as they do in PyTorch; NaN
    stays NaN. Both views must hold the same count of numbers. Dtypes are safetensors names.
    """
    numbers = np.frombuffer(source, SOURCE_DTYPES[source_dtype])
    out = np.frombuffer(target, SOURCE_DTYPES[target_dtype])
    with np.errstate(all="ignore"):
        for start in range(0, numbers.size, _CHUNK_NUMBERS):
            chunk = numbers[start : start + _CHUNK_NUMBERS]
            into = out[start : start + _CHUNK_NUMBERS]
            if target_dtype == "BF16" and source_dtype != "BF16":
                _round_to_bfloat16(chunk.astype(np.float32, copy=False), into)
            elif target_dtype == "F16" and source_dtype == "BF16":
                into[:] = _widen(chunk)
            else:
                np.copyto(into, chunk, casting="unsafe")


def overflows(source: memoryview, source_dtype: str, target: memoryview, target_dtype: str) -> bool:
    """Whether `cast` made a finite number infinite."""
    out = np.frombuffer(target, SOURCE_DTYPES[target_dtype])
    made = np.isinf(out)
    if not made.any():
        return False
    return bool(np.isfinite(np.frombuffer(source, SOURCE_DTYPES[source_dtype])[made]).any())


def _widen(numbers: NDArray[np.generic]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of float32."""
    return (numbers.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _round_to_bfloat16(numbers: NDArray[np.float32], into: NDArray[np.generic]) -> None:
    # Several times quicker than ml_dtypes' own cast, which goes number by number.
    if np.isnan(numbers).any():
        np.copyto(into, numbers, casting="unsafe")
        return
    # Adds just less than a half of the last place kept, or just a half when that place is odd.
    bits = numbers.view(np.uint32)
    rounded = (bits.view(np.uint16)[_UPPER] & 1).astype(np.uint32)
    rounded += 0x7FFF
    rounded += bits
    into.view(np.uint16)[:] = rounded.view(np.uint16)[_UPPER]
