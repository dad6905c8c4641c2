"""Reading in a thread what the caller will want next."""

from collections.abc import Callable, Generator, Iterator
from queue import Queue, SimpleQueue
from threading import Thread
from typing import TypeVar

AHEAD = 4
"""Buffers that are filled before the caller wants them."""

Buffers = SimpleQueue[memoryview]
_Step = TypeVar("_Step")


def read_ahead(
    steps: Iterator[_Step], read: Callable[[_Step, memoryview], bool], buffers: Buffers
) -> Generator[tuple[_Step, memoryview | None]]:
    """Yield every step with a buffer that `read` has filled for it, in order.

    At most `AHEAD` buffers are filled and waiting, and one being filled; `buffers` must hold more,
    and the caller puts them back. What `read` or `steps` raises comes out at its place. Closing the
    iterator ends the thread.

    Args:
        read: Returns False where a step needs no buffer; it gets None then.
    """
    ready: Queue[tuple[_Step, memoryview | None] | BaseException | None] = Queue(AHEAD)
    ending = False

    def run() -> None:
        try:
            for step in steps:
                buffer = buffers.get()
                if ending:
                    break
                if read(step, buffer):
                    ready.put((step, buffer))
                else:
                    buffers.put(buffer)
                    ready.put((step, None))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = Thread(target=run, name="read ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ending = True
        while thread.is_alive():
            # It may wait for a place in the queue, or for a buffer that lies there.
            while not ready.empty():
                item = ready.get()
                if isinstance(item, tuple) and item[1] is not None:
                    buffers.put(item[1])
            thread.join(0.01)
