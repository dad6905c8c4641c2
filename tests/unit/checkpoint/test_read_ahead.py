"""Reading ahead: in order, bounded, and over when the caller is."""

import threading
from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue

import pytest

from trtforge.checkpoint.read_ahead import AHEAD, Buffers, read_ahead


def buffers(count: int) -> Buffers:
    free: Buffers = SimpleQueue()
    for _ in range(count):
        free.put(memoryview(bytearray(8)))
    return free


def fill(step: int, buffer: memoryview) -> bool:
    buffer[:] = step.to_bytes(8, "little")
    return True


def reading_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "read ahead"]


def test_steps_come_in_order_with_what_was_read_for_them() -> None:
    free = buffers(AHEAD + 2)
    for step, buffer in read_ahead(iter(range(100)), fill, free):
        assert buffer is not None
        assert int.from_bytes(buffer, "little") == step
        free.put(buffer)
    assert free.qsize() == AHEAD + 2


def test_no_more_is_read_than_the_bound_allows() -> None:
    taken: list[int] = []

    def steps() -> Iterator[int]:
        for step in range(1000):
            taken.append(step)
            yield step

    free = buffers(50)
    with closing(read_ahead(steps(), fill, free)) as items:
        next(items)
        free.put(memoryview(bytearray(8)))
        threading.Event().wait(0.1)
        assert len(taken) <= AHEAD + 3


def test_an_error_comes_out_after_what_was_read_before_it() -> None:
    def read(step: int, _: memoryview) -> bool:
        if step == 3:
            raise OSError("disk")
        return True

    seen: list[int] = []
    with pytest.raises(OSError, match="disk"):
        seen.extend(step for step, _ in read_ahead(iter(range(10)), read, buffers(20)))
    assert seen == [0, 1, 2]
    assert reading_threads() == []


@pytest.mark.parametrize("taken", [0, 1, 30])
def test_leaving_early_ends_the_thread(taken: int) -> None:
    with closing(read_ahead(iter(range(1000)), fill, buffers(40))) as items:
        for _ in range(taken):
            next(items)
    assert reading_threads() == []


def test_a_step_without_a_buffer_keeps_its_place() -> None:
    def only_even(step: int, _: memoryview) -> bool:
        return step % 2 == 0

    free = buffers(30)
    got = [(step, b is not None) for step, b in read_ahead(iter(range(6)), only_even, free)]
    assert got == [(0, True), (1, False), (2, True), (3, False), (4, True), (5, False)]
