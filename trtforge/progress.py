"""How long steps tell what they are doing, without knowing who listens.

Library functions take an `on_progress` callback. Stages announce themselves as `StageEvent`s to
whoever subscribed in this process: the terminal display of `trtforge build` does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

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
        stage: `pull`, `convert`, `compile`, `benchmark` or `publish`.
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
