"""How long stages took before: the ground of what a plan says about minutes."""

import math
import statistics
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
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
# Stages whose time follows the model's size; that of the others is taken as it was.
_BY_SIZE = {"pull", "convert"}


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
        sized = result.stage in {"pull", "convert", "compile"}
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

        The median of the models that were nearest in size, on the same backend and GPU for the
        stages that have them; pull and convert in proportion to the bytes.
        """
        like = [p for p in self.past if p.stage == stage]
        if stage not in _BY_SIZE:
            like = [p for p in like if (p.backend, p.gpu) == (backend, gpu)]
        like = [p for p in like if p.size_bytes > 0] if stage in _BY_SIZE else like
        nearest = sorted(like, key=lambda p: _distance(p.size_bytes, model_bytes))[:_NEAREST]
        if not nearest:
            return None
        if stage in _BY_SIZE:
            return statistics.median(p.seconds * model_bytes / p.size_bytes for p in nearest)
        return statistics.median(p.seconds for p in nearest)


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


def _distance(one: int, other: int) -> float:
    return abs(math.log(max(one, 1) / max(other, 1)))
