"""Sightings: which toolchain the workers of a GPU pool have, as the last run there found it.

The keys of compile, benchmark and publish depend on the toolchain, which only a GPU worker can
look at. With a sighting the rest of the world can tell what is in the store without a GPU.
"""

from collections.abc import Iterator

from pydantic import AwareDatetime, Field, JsonValue

from trtforge.engines.base import Toolchain
from trtforge.spec import EngineSpec
from trtforge.store.inventory import in_parallel
from trtforge.store.layout import SIGHTINGS, sighting_key
from trtforge.store.objects import Bucket
from trtforge.store.records import Record, now, parse_record


class Sighting(Record):
    """What the workers of a pool compile with.

    Attributes:
        pool: The Prefect work pool.
        backend: A value of `engine.backend`.
        variant: Which of the backend's toolchains, see `variant`.
        toolchain: As `Toolchain.to_json` writes it.
        gpu_memory_bytes: Of one GPU; None: not known, or no GPU.
        gpu_count: GPUs that the run could see.
        seen_at: When.
    """

    pool: str
    backend: str
    variant: str
    toolchain: dict[str, JsonValue]
    gpu_memory_bytes: int | None = Field(default=None, ge=0)
    gpu_count: int = Field(default=0, ge=0)
    seen_at: AwareDatetime = Field(default_factory=now)

    @property
    def found(self) -> Toolchain:
        return Toolchain.from_json(self.toolchain)


class Sightings:
    """The sightings of a bucket. Whoever looked last is right: nothing is compared or kept."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def get(self, pool: str, engine: EngineSpec) -> Sighting | None:
        """What was seen in `pool` for engines like this; None: nobody looked yet."""
        return self._read(sighting_key(pool, engine.backend, variant(engine)))

    def put(self, sighting: Sighting) -> None:
        key = sighting_key(sighting.pool, sighting.backend, sighting.variant)
        self._bucket.put(key, sighting.to_bytes())

    def all(self) -> Iterator[Sighting]:
        """Every sighting."""
        keys = [key for key in self._bucket.keys(SIGHTINGS) if key.endswith(".json")]
        yield from (found for found in in_parallel(self._read, keys) if found)

    def _read(self, key: str) -> Sighting | None:
        stored = self._bucket.get(key)
        return parse_record(Sighting, stored.data, self._bucket.uri(key)) if stored else None


def variant(engine: EngineSpec) -> str:
    """Which of a backend's toolchains: the release of trtllm, the device that aoti is told."""
    if engine.version:
        return engine.version
    device = str(engine.options.get("device", "auto"))
    return "any" if device == "auto" else device
