"""About how long a stage will take: by what like ones took, a fixed part and a part by bytes."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.stages.history import History, PastStage, read_history
from trtforge.store import StageResult, Store


def test_stages_are_compared_with_those_of_the_same_toolchain_and_a_near_size() -> None:
    past = [PastStage("compile", 10.0 * n, 10**n, "trtllm", "A") for n in range(1, 10)]
    history = History((*past, PastStage("compile", 1, 10**8, "trtllm", "B")))
    assert history.seconds("compile", 10**8, backend="trtllm", gpu="A") == 80
    assert history.seconds("compile", 10**8, backend="trtllm", gpu="C") is None
    assert history.seconds("pull", 10**8) is None


def test_what_small_models_took_is_the_fixed_part_and_not_scaled_by_their_bytes() -> None:
    tiny = [PastStage("pull", 0.8, 130_000), PastStage("pull", 1.0, 250_000)]
    assert History(tuple(tiny)).seconds("pull", 2_000_000) == pytest.approx(0.9)
    # How fast bytes move is not known from these.
    assert History(tuple(tiny)).seconds("pull", 273_000_000) is None
    larger = PastStage("pull", 31, 300_000_000)
    seconds = History((*tiny, larger)).seconds("pull", 14_000_000_000)
    assert seconds == pytest.approx(0.9 + 14_000 / 10, rel=0.02)


def test_an_estimate_is_a_fixed_part_and_a_part_by_bytes() -> None:
    past = [PastStage("convert", 12 + 5 * gb, gb * 10**9) for gb in (1, 3, 16, 140)]
    waited = PastStage("convert", 4_000, 7 * 10**9)
    history = History((*past, waited))
    assert history.seconds("convert", 48 * 10**9) == pytest.approx(12 + 5 * 48, rel=0.1)
    assert history.seconds("convert", 10**6) == pytest.approx(12, abs=3)
    # Of one size alone, everything is by bytes.
    assert History(tuple(past[:1])).seconds("convert", 10 * 10**9) == pytest.approx(170)
    # The same model again takes what it took.
    assert history.seconds("convert", 16 * 10**9) == 12 + 5 * 16


@given(
    model_bytes=st.integers(1, 10**12),
    past=st.lists(
        st.builds(PastStage, st.just("pull"), st.floats(0, 10**5), st.integers(0, 10**12)),
        max_size=8,
    ),
)
def test_an_estimate_is_never_negative(model_bytes: int, past: list[PastStage]) -> None:
    seconds = History(tuple(past)).seconds("pull", model_bytes)
    assert seconds is None or 0 <= seconds < math.inf


def test_the_history_is_read_from_the_records_of_the_store(s3: Any, tmp_path: Path) -> None:
    store = Store(s3.client, s3.bucket, tmp_path / "cache")
    assert read_history(store).past == ()
    toolchain = {"backend": "aoti", "gpu_name": None}
    for n in range(3):
        ref = store.put_bytes(b"x" * (n + 1), "rank0.pt2")
        store.put_stage(
            StageResult(
                stage="compile",
                key=f"{n}" * 64,
                inputs={"toolchain": toolchain},
                outputs=(ref,),
                seconds=n,
            )
        )
    store.bucket.put(f"stages/pull/{'f' * 64}.json", b"rubbish")
    found = sorted(read_history(store).past, key=lambda past: past.seconds)
    assert found == [PastStage("compile", float(n), n + 1, "aoti", None) for n in range(3)]
