"""Rounding to bfloat16: nearest, ties to even, judged by exact arithmetic."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trtforge.checkpoint.casting import cast

BFLOAT16_MAX = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
HALFWAY = 1 + 2.0**-8  # between 1 and the next bfloat16


def rounded(numbers: np.ndarray, dtype: str) -> np.ndarray:
    target = bytearray(2 * numbers.size)
    cast(memoryview(numbers.tobytes()), dtype, memoryview(target), "BF16")
    return np.frombuffer(target, ml_dtypes.bfloat16)


def neighbours(bits: int) -> list[int]:
    """Bit patterns of the finite bfloat16 numbers next to a finite one, and itself."""
    magnitude, sign = bits & 0x7FFF, bits & 0x8000
    near = {sign | m for m in (magnitude - 1, magnitude, magnitude + 1) if 0 <= m < 0x7F80}
    return sorted(near)


def exact(bits: int) -> Fraction:
    return Fraction(float(np.array(bits, np.uint16).view(ml_dtypes.bfloat16)))


@given(st.floats(width=32, allow_nan=False, min_value=-BFLOAT16_MAX, max_value=BFLOAT16_MAX))
@example(HALFWAY)
@example(1 + 3 * 2.0**-8)
@example(-HALFWAY)
@example(2.0**-149)
@example(2.0**-134)
@example(-0.0)
def test_float32_goes_to_the_nearest_and_a_tie_to_the_even_one(number: float) -> None:
    result = int(rounded(np.array([number], np.float32), "F32").view(np.uint16)[0])
    assert (result & 0x7FFF) < 0x7F80
    distance = {bits: abs(exact(bits) - Fraction(number)) for bits in neighbours(result)}
    nearest = [bits for bits, d in distance.items() if d == min(distance.values())]
    assert result in nearest
    assert len(nearest) == 1 or result % 2 == 0
    assert bool(result & 0x8000) == (math.copysign(1, number) < 0)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_any_float32_bits_round_as_in_ml_dtypes(bits: list[int]) -> None:
    numbers = np.array(bits, np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        expected = numbers.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(
        rounded(numbers, "F32").astype(np.float32), expected.astype(np.float32)
    )


def test_every_float16_rounds_as_its_float32_value_does() -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    via_float32 = rounded(numbers.astype(np.float32), "F32").astype(np.float32)
    np.testing.assert_array_equal(rounded(numbers, "F16").astype(np.float32), via_float32)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_infinities_and_nan_survive(dtype: str) -> None:
    numpy_dtype = {"F16": np.float16, "F32": np.float32}[dtype]
    result = rounded(np.array([np.inf, -np.inf, np.nan], numpy_dtype), dtype)
    np.testing.assert_array_equal(result.astype(np.float32), [np.inf, -np.inf, np.nan])


def test_beyond_the_largest_number_lies_infinity() -> None:
    largest = np.finfo(np.float32).max
    assert rounded(np.array([largest, -largest], np.float32), "F32").tolist() == [np.inf, -np.inf]
