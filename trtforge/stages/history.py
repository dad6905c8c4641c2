"""How long stages took before: the ground of what a plan says about minutes.

An estimate has a fixed part (starting a toolchain, asking a service) and a part by bytes, both out
of the records in the store. Where these cannot tell the parts apart, nothing is made up.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

from trtforge.errors import ServiceError
from trtforge.store.stages import StageResult

if TYPE_CHECKING:
    from trtforge.store import Store

STAGES = ("pull", "convert", "compile", "benchmark", "publish")
# Keys of records are digests, so that the first ones of a listing are a fair sample of all.
_SAMPLE = 40
_READERS = 8
_NEAREST = 3
# Stages whose outputs are as large as the model; that of the others is taken as it was.
_SIZED = {"pull", "convert", "compile"}
# Stages that no toolchain takes part in.
_ANYWHERE = {"pull", "convert"}
# Sizes as near as this are one size.
_ALIKE = math.log(2)
# Moving fewer bytes takes a second or so, which is lost among what the fixed part varies by.
_TELLING_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class PastStage:
    """One stage that was made once.

    Attributes:
        size_bytes: Of its outputs; 0 where they say nothing about the model's size.
        backend, gpu: Of the toolchain; None where the stage has none.
    """

    stage: str
    seconds: float
    size_bytes: int
    backend: str | None = None
    gpu: str | None = None

    @classmethod
    def of(cls, result: StageResult) -> "PastStage":
        """What a record tells."""
        toolchain: Any = result.inputs.get("toolchain") or {}
        sized = result.stage in _SIZED
        return cls(
            stage=result.stage,
            seconds=result.seconds,
            size_bytes=sum(ref.size_bytes for ref in result.outputs) if sized else 0,
            backend=toolchain.get("backend"),
            gpu=toolchain.get("gpu_name"),
        )


@dataclass(frozen=True)
class History:
    """Stages that were made before."""

    past: tuple[PastStage, ...]

    def seconds(
        self, stage: str, model_bytes: int, *, backend: str | None = None, gpu: str | None = None
    ) -> float | None:
        """About how long a stage will take; None when nothing like it was ever made.

        Of stages on the same backend and GPU, where they have these: the median of those that
        made a model of about this size; without such, a line through all of them.
        """
        like = [p for p in self.past if p.stage == stage]
        if stage not in _ANYWHERE:
            like = [p for p in like if (p.backend, p.gpu) == (backend, gpu)]
        if stage not in _SIZED:
            return statistics.median(p.seconds for p in like) if like else None
        like = sorted(
            (p for p in like if p.size_bytes > 0),
            key=lambda p: _distance(p.size_bytes, model_bytes),
        )
        near = [p for p in like if _distance(p.size_bytes, model_bytes) <= _ALIKE][:_NEAREST]
        if near:
            return statistics.median(p.seconds for p in near)
        return _on_a_line(like, model_bytes)


def read_history(store: "Store", stages: Iterable[str] = STAGES) -> History:
    """A sample of the records in the store; empty where it cannot be read: this is a courtesy."""

    def read(key: str) -> PastStage | None:
        with suppress(ServiceError, ValueError):
            stored = store.bucket.get(key)
            if stored is not None:
                return PastStage.of(StageResult.model_validate_json(stored.data))
        return None

    keys: list[str] = []
    with suppress(ServiceError):
        for stage in stages:
            keys += islice(store.bucket.keys(f"stages/{stage}/"), _SAMPLE)
    with ThreadPoolExecutor(_READERS) as pool:
        return History(tuple(found for found in pool.map(read, keys) if found))


def _on_a_line(like: Sequence[PastStage], model_bytes: int) -> float | None:
    """Fixed part plus bytes times seconds per byte; None where nothing tells them apart.

    The slope is the median of those between any two stages (Theil-Sen), which a stage that had to
    wait for something does not spoil; two sizes that are too near each other say nothing about it.
    """
    slopes = [
        (one.seconds - other.seconds) / (one.size_bytes - other.size_bytes)
        for one, other in combinations(like, 2)
        if abs(one.size_bytes - other.size_bytes) >= _TELLING_BYTES
    ]
    if slopes:
        per_byte = max(statistics.median(slopes), 0.0)
        fixed = statistics.median(p.seconds - per_byte * p.size_bytes for p in like)
        return max(fixed, 0.0) + per_byte * model_bytes
    if not like:
        return None
    if abs(like[0].size_bytes - model_bytes) < _TELLING_BYTES:
        # All of it is the fixed part.
        return statistics.median(p.seconds for p in like)
    if like[0].size_bytes < _TELLING_BYTES:
        return None
    # One size, and a large one: next to its bytes the fixed part does not count.
    return statistics.median(p.seconds / p.size_bytes for p in like) * model_bytes


def _distance(one: int, other: int) -> float:
    return abs(math.log(max(one, 1) / max(other, 1)))
