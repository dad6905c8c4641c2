"""How the store is: what lies in it, what is damaged, and what could go."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trtforge.errors import ServiceError
from trtforge.store.abandoned import unfinished
from trtforge.store.gc import Garbage
from trtforge.store.inventory import listed
from trtforge.store.layout import ALIASES, BLOBS, MANIFESTS, PINS, STAGES
from trtforge.store.rounds import Share
from trtforge.store.verify import Damage, Verification

if TYPE_CHECKING:
    from trtforge.store import Store

_SHOWN = 5
_SHOWN_DIGITS = 12


class BytesLostError(ServiceError):
    """The store does not hold what was put into it."""


@dataclass(frozen=True)
class Health:
    """The store in figures; sizes in bytes.

    Attributes:
        freed, reclaimable: What `gc` deleted now, and what it would delete.
        unfinished_uploads: Begun and neither completed nor aborted, however young.
        oldest_upload_s: Age of the oldest; None: there is none.
        read_objects, read_bytes: Blobs that were read and compared with their digest.
        round_days: In so many days every blob is read once.
        damage: What is not as it was stored, one line each.
    """

    objects: int
    size_bytes: int
    blobs: int
    blob_bytes: int
    engines: int
    aliases: int
    pins: int
    stage_records: int
    freed: int
    freed_bytes: int
    reclaimable: int
    reclaimable_bytes: int
    unfinished_uploads: int
    oldest_upload_s: float | None
    read_objects: int
    read_bytes: int
    round_days: int
    damage: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[dict[str, str]]:
        """For a table."""
        oldest = self.oldest_upload_s
        uploads = str(self.unfinished_uploads)
        if oldest is not None:
            uploads += f", the oldest begun {oldest / 3600:.0f} h ago"
        figures = {
            "State": f"{len(self.damage)} objects damaged" if self.damage else "whole",
            "Stored": f"{_size(self.size_bytes)} in {self.objects} objects",
            "Blobs": f"{_size(self.blob_bytes)} in {self.blobs}",
            "Engines": str(self.engines),
            "Aliases": str(self.aliases),
            "Pinned engines": str(self.pins),
            "Stage results": str(self.stage_records),
            "Freed now": f"{_size(self.freed_bytes)} in {self.freed} objects",
            "Reclaimable": f"{_size(self.reclaimable_bytes)} in {self.reclaimable} objects",
            "Unfinished uploads": uploads,
            "Read now": f"{_size(self.read_bytes)} in {self.read_objects} blobs",
            "Everything is read": f"every {self.round_days} days",
        }
        rows = [{"What": name, "Figure": figure} for name, figure in figures.items()]
        return [*rows, *({"What": "Damaged", "Figure": line} for line in self.damage)]


def take_stock(
    store: "Store", share: Share, *, freed: Sequence[Garbage], reclaimable: Sequence[Garbage]
) -> Health:
    """Count what is in the bucket now."""
    counts = dict.fromkeys((MANIFESTS, ALIASES, PINS, STAGES, BLOBS), 0)
    objects = size_bytes = blob_bytes = 0
    for item in listed(store.bucket, ""):
        objects += 1
        size_bytes += item.size_bytes
        kind = next((prefix for prefix in counts if item.key.startswith(prefix)), None)
        if kind is not None:
            counts[kind] += 1
        if kind == BLOBS:
            blob_bytes += item.size_bytes
    uploads = unfinished(store.bucket, older_than_s=float("-inf"))
    return Health(
        objects=objects,
        size_bytes=size_bytes,
        blobs=counts[BLOBS],
        blob_bytes=blob_bytes,
        engines=counts[MANIFESTS],
        aliases=counts[ALIASES],
        pins=counts[PINS],
        stage_records=counts[STAGES],
        freed=len(freed),
        freed_bytes=sum(item.size_bytes for item in freed),
        reclaimable=len(reclaimable),
        reclaimable_bytes=sum(item.size_bytes for item in reclaimable),
        unfinished_uploads=len(uploads),
        oldest_upload_s=max((upload.age_s for upload in uploads), default=None),
        read_objects=share.verification.blobs,
        read_bytes=share.verification.size_bytes,
        round_days=share.days,
        damage=tuple(told(damage) for damage in share.verification.remaining),
    )


def told(damage: Damage) -> str:
    """One damaged thing in a line: what it is, and who needs it."""
    needed = [f"engine {engine[:_SHOWN_DIGITS]}" for engine in damage.engines[:_SHOWN]]
    more = len(damage.engines) - len(needed)
    needed += [f"{more} more engines"] if more else []
    needed += [f"{len(damage.others)} stage results or caches"] if damage.others else []
    return f"{damage.key} is {damage.fault}; needed by {', '.join(needed) or 'nothing'}"


def require_whole(found: Verification) -> None:
    """Refuse to go on as if nothing was wrong.

    Raises:
        BytesLostError: naming what is damaged and the engines that need it.
    """
    if not found.remaining:
        return
    lines = [told(damage) for damage in found.remaining]
    more = len(lines) - _SHOWN
    also = f"; and {more} more" if more > 0 else ""
    raise BytesLostError(
        f"{len(lines)} objects are damaged or missing: {'; '.join(lines[:_SHOWN])}{also}",
        field="object",
        value=found.remaining[0].key,
        remedy="Mend them from copies with `trtforge store verify --repair` or `--from DIR`, or "
        "build the engines again",
    )


def _size(size_bytes: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"
