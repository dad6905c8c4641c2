"""Is every byte still what was stored? Reads blobs whole, names the damage, mends it from copies.

A blob that a record names by `sha256` and `size_bytes` is needed, whatever kind of record it is.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trtforge.canonical import sha256_file
from trtforge.files import FileRef
from trtforge.progress import OnProgress, ignore
from trtforge.store.inventory import Reader, listed
from trtforge.store.layout import MANIFESTS, STAGES, TIMING, blob_key, engine_id_of
from trtforge.store.manifests import Manifest, ManifestIdError
from trtforge.store.records import RecordInvalidError, UnknownFormatError, parse_record
from trtforge.store.streaming import stored_chunks
from trtforge.store.transfer import BlobCorruptError, BlobMissingError, ByteMeter

if TYPE_CHECKING:
    from trtforge.store import Store

_BLOBS_AT_ONCE = 8
_log = logging.getLogger(__name__)

Fault = Literal["missing", "damaged", "unreadable record"]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was stored.

    Attributes:
        key: Its key in the bucket.
        fault: A blob is `missing` or `damaged`; a manifest is an `unreadable record`.
        size_bytes: What it should have.
        engines: Ids of the engines that need it.
        others: Keys of the stage records and timing caches that do.
        repaired: Whether it was mended from a local copy.
    """

    key: str
    fault: Fault
    size_bytes: int
    engines: tuple[str, ...]
    others: tuple[str, ...] = ()
    repaired: bool = False


@dataclass(frozen=True)
class Verification:
    """What was read, and what was wrong."""

    blobs: int
    size_bytes: int
    damage: tuple[Damage, ...]

    @property
    def remaining(self) -> tuple[Damage, ...]:
        return tuple(damage for damage in self.damage if not damage.repaired)


Copies = Callable[[str, int], Path | None]
"""Finds a file with this SHA-256 and size on this machine."""


def verify_engine(
    store: "Store",
    manifest: Manifest,
    copies: Copies | None = None,
    on_progress: OnProgress = ignore,
) -> Verification:
    """Read every byte of one engine; with `copies`, mend what is wrong."""
    needs = {
        ref.sha256: _Need(ref.size_bytes, [manifest.engine_id], []) for ref in _files(manifest)
    }
    return _verify(store, needs, [], copies, on_progress)


def verify_store(
    store: "Store",
    copies: Copies | None = None,
    on_progress: OnProgress = ignore,
    choose: Callable[[str], bool] | None = None,
) -> Verification:
    """Read every manifest, and every byte that manifests, stage records and timing caches need.

    Args:
        choose: Told a blob's digest, whether to read it; None: every one.
    """
    needs, unreadable = _needs(store)
    if choose:
        needs = {sha256: need for sha256, need in needs.items() if choose(sha256)}
    return _verify(store, needs, unreadable, copies, on_progress)


def cached_copies(store: "Store") -> Copies:
    """Copies in the local cache."""

    def find(sha256: str, size_bytes: int) -> Path | None:
        return store.cache.find(sha256, size_bytes, verify=True)

    return find


def copies_below(directory: Path) -> Copies:
    """Copies anywhere below a directory, under any name: only files of the right size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            by_size[path.stat().st_size].append(path)

    def find(sha256: str, size_bytes: int) -> Path | None:
        return next((p for p in by_size[size_bytes] if sha256_file(p) == sha256), None)

    return find


def either(first: Copies, second: Copies) -> Copies:
    """Copies of the first place that has one."""
    return lambda sha256, size_bytes: first(sha256, size_bytes) or second(sha256, size_bytes)


@dataclass(frozen=True)
class _Need:
    size_bytes: int
    engines: list[str]
    others: list[str]


def _needs(store: "Store") -> tuple[dict[str, _Need], list[Damage]]:
    """Every blob that a record needs, and the manifests that cannot be read."""
    reader = Reader(store.bucket)
    needs: dict[str, _Need] = {}
    unreadable = []

    def need(ref_sha256: str, size_bytes: int) -> _Need:
        return needs.setdefault(ref_sha256, _Need(size_bytes, [], []))

    for key, data in reader.all(listed(store.bucket, MANIFESTS)).items():
        engine_id = engine_id_of(key)
        try:
            manifest = parse_record(Manifest, data, store.bucket.uri(key))
        except (ManifestIdError, RecordInvalidError, UnknownFormatError) as error:
            _log.warning("%s", error)
            unreadable.append(Damage(key, "unreadable record", len(data), (engine_id,)))
            continue
        for ref in _files(manifest):
            need(ref.sha256, ref.size_bytes).engines.append(engine_id)
    for prefix in (STAGES, TIMING):
        for key, data in reader.all(listed(store.bucket, prefix)).items():
            for sha256, size_bytes in _named(_json(data)):
                need(sha256, size_bytes).others.append(key)
    return needs, unreadable


def _files(manifest: Manifest) -> Sequence[FileRef]:
    return (*manifest.core.files, *manifest.evidence)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:  # not a record; builders say so when they meet it
        return None


def _named(value: Any) -> Iterator[tuple[str, int]]:
    """Every `sha256` with a `size_bytes` beside it."""
    if isinstance(value, dict):
        sha256, size_bytes = value.get("sha256"), value.get("size_bytes")
        if isinstance(sha256, str) and isinstance(size_bytes, int):
            yield sha256, size_bytes
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _named(item)


def _verify(
    store: "Store",
    needs: Mapping[str, _Need],
    unreadable: Iterable[Damage],
    copies: Copies | None,
    on_progress: OnProgress,
) -> Verification:
    total = sum(need.size_bytes for need in needs.values())
    meter = ByteMeter(f"reading {len(needs)} blobs", total, on_progress)

    def check(sha256: str) -> Damage | None:
        need = needs[sha256]
        ref = FileRef(sha256, need.size_bytes, sha256)
        fault = _fault(store, ref, meter)
        if fault is None:
            return None
        damage = Damage(
            blob_key(sha256), fault, need.size_bytes, tuple(need.engines), tuple(need.others)
        )
        return _mended(store, ref, damage, copies) if copies else damage

    with ThreadPoolExecutor(_BLOBS_AT_ONCE) as pool:
        found = [damage for damage in pool.map(check, sorted(needs)) if damage]
    return Verification(len(needs), total, (*unreadable, *found))


def _fault(store: "Store", ref: FileRef, meter: ByteMeter | None = None) -> Fault | None:
    try:
        for chunk in stored_chunks(store.bucket, ref):
            if meter:
                meter.add(len(chunk))
    except BlobMissingError:
        return "missing"
    except BlobCorruptError:
        return "damaged"
    return None if store.blobs.has(ref) else "damaged"


def _mended(store: "Store", ref: FileRef, damage: Damage, copies: Copies) -> Damage:
    copy = copies(ref.sha256, ref.size_bytes)
    if copy is None:
        return damage
    # As long as it is there, with its size and metadata, it would pass for whole and be skipped.
    store.bucket.delete(damage.key)
    store.put_file(copy, ref)
    repaired = _fault(store, ref) is None
    return Damage(
        damage.key, damage.fault, damage.size_bytes, damage.engines, damage.others, repaired
    )
