"""The history of an engine's benchmarks: what it did when, so that a trend can be seen.

    benchmarks/<engine id>/<time>-<unique>.json    one benchmark; written once

The raw data of each lie below `runs/<run id>/`.
"""

import uuid
from datetime import UTC
from typing import Literal

from pydantic import AwareDatetime, Field, JsonValue

from trtforge.store.inventory import read_records
from trtforge.store.layout import BENCHMARKS, benchmark_key
from trtforge.store.objects import Bucket
from trtforge.store.records import Part, Record, Sha256, now


class BenchedValue(Part):
    """A mean over repeats and its 95 % interval; the ends are None where there was one repeat."""

    mean: float
    low: float | None
    high: float | None
    n: int


class BenchedPoint(Part):
    """The engine at one concurrency; `values` by the metric's name."""

    concurrency: int
    input_tokens: float
    output_tokens: int
    values: dict[str, BenchedValue]


class BenchmarkRecord(Record):
    """One benchmark of a published engine.

    Attributes:
        run_id: Where its raw data lie: below `runs/<run id>/`.
        device: Name of the GPU, or model of the CPU.
        machine: What measured (`trtforge.benchmark.machine`).
        by: Who, or which flow run, had it measured.
    """

    kind: Literal["benchmark"] = "benchmark"
    engine_id: Sha256
    run_id: str
    device: str
    workload: str
    boundary: str
    points: tuple[BenchedPoint, ...]
    machine: dict[str, JsonValue]
    by: str
    at: AwareDatetime = Field(default_factory=now)


class Benchmarks:
    """The benchmarks of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def put(self, record: BenchmarkRecord) -> str:
        """Keep a record; those before it stay. Returns its key."""
        at = record.at.astimezone(UTC)
        name = f"{at:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}"
        key = benchmark_key(record.engine_id, name)
        self._bucket.put_if_absent(key, record.to_bytes())
        return key

    def of(self, engine_id: str) -> list[BenchmarkRecord]:
        """The history of one engine, oldest first."""
        prefix = f"{BENCHMARKS}{engine_id}/"
        keys = sorted(key for key in self._bucket.keys(prefix) if key.endswith(".json"))
        return [record for _, record in read_records(self._bucket, BenchmarkRecord, keys)]
