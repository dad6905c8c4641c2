"""How long steps tell what they are doing, without knowing who listens.

Library functions take an `on_progress` callback. Stages announce themselves as `StageEvent`s to
whoever subscribed in this process: the terminal display of `trtforge build` does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Unit = Literal["bytes", "steps", "tokens"]


@dataclass(frozen=True)
class Progress:
    """How far one step has come: `done` of `total` (None when unknown), in `unit`."""

    what: str
    done: int
    total: int | None
    unit: Unit


OnProgress = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """The callback of those who do not want to know."""


@dataclass(frozen=True)
class StageEvent:
    """One thing that happened to a stage.

    Attributes:
        stage: `pull`, `convert`, `compile`, `benchmark`, `gate` or `publish`; or the name of a
            step that is no stage of a build (`Announced`).
        kind: `started`, `progress`, `hit` (found in the store), `done` or `failed`; or `log`, when
            a stage is about to fail and its toolchain left a log.
        message: One line for a person; for `log`, the whole log.
        progress: Set when `kind` is `progress`.
        seconds: Wall time of the stage; set for `hit`, `done` and `failed`.
        facts: Short `name: value` pairs worth showing beside a finished stage.
    """

    stage: str
    kind: Literal["started", "progress", "hit", "done", "failed", "log"]
    message: str = ""
    progress: Progress | None = None
    seconds: float | None = None
    facts: dict[str, str] = field(default_factory=dict)


class Announced:
    """A step that is announced like a stage, as the body of a `with` block.

    Attributes:
        message: How it ended, one line for a person; the block sets it.
    """

    def __init__(self, step: str) -> None:
        self.message = ""
        self._step = step
        self._started = 0.0

    @property
    def on_progress(self) -> OnProgress:
        """For the functions that the block calls."""
        return announcing(self._step)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        announce(StageEvent(self._step, "started"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.monotonic() - self._started
        if error is None:
            announce(StageEvent(self._step, "done", self.message, seconds=seconds))
        else:
            announce(StageEvent(self._step, "failed", str(error), seconds=seconds))


Listener = Callable[[StageEvent], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send every stage event of this process to `listener` while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(event: StageEvent) -> None:
    """Tell all listeners of this process."""
    for listener in tuple(_listeners):
        listener(event)


def announcing(step: str) -> OnProgress:
    """A callback that announces the progress of a stage or step."""
    return lambda progress: announce(StageEvent(step, "progress", progress=progress))
