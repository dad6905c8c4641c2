"""Which GPUs a run may take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.cards import visible_gpus

ALL = ("GPU-aaaa1111", "GPU-bbbb2222", "GPU-bbbb3333")


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        (None, ALL),
        ("", ()),
        ("1", ALL[1:2]),
        ("2,0", (ALL[2], ALL[0])),
        ("GPU-aaaa1111", ALL[:1]),
        ("GPU-bbbb3", ALL[2:]),
        ("GPU-bbbb", ()),
        ("0,7,1", ALL[:1]),
        ("-1", ()),
        (" 0 , 1 ", ALL[:2]),
    ],
    ids=[
        "unset: all",
        "empty: none",
        "an index",
        "in the order given",
        "a uuid",
        "the beginning of a uuid",
        "of two uuids",
        "nothing after one that is not there",
        "none, as people write it",
        "blanks",
    ],
)
def test_cuda_visible_devices_is_heeded(setting: str | None, left: tuple[str, ...]) -> None:
    assert visible_gpus(ALL, setting) == left


@given(st.lists(st.integers(0, 9), max_size=4))
def test_never_a_gpu_that_is_not_there(indices: list[int]) -> None:
    left = visible_gpus(ALL, ",".join(map(str, indices)))
    assert set(left) <= set(ALL)
    good = indices[: next((n for n, i in enumerate(indices) if i >= len(ALL)), len(indices))]
    assert left == tuple(ALL[i] for i in good)
