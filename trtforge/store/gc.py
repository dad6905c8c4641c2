"""Freeing space: which engines, stage records and blobs nothing needs any more, and their end.

An engine is kept while an alias points at it or did before its last move, while it is pinned,
while somebody is publishing or promoting it, and for `keep_s` after it was published. A stage
record is kept for `keep_s` after it was written or last used, and while a kept engine descends
from it. A blob is kept while any record that stays names it: whatever looks like a SHA-256 in a
record counts as a name, so that records of a newer trtforge keep what they need too. Nothing
younger than `grace_s` is touched. `runs/` is left alone, and so are `leases/` of the last day.

`trtforge.store.announce` argues why this may run while engines are published.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from botocore.exceptions import ClientError

from trtforge.errors import ServiceError
from trtforge.files import files_digest
from trtforge.progress import OnProgress, Progress, ignore
from trtforge.store.abandoned import Upload, abort, unfinished
from trtforge.store.aliases import AliasRecord
from trtforge.store.announce import ANNOUNCED_S, Sweep, running_sweep
from trtforge.store.client import error_code
from trtforge.store.inventory import Listed, Reader, digests_in, in_parallel, listed
from trtforge.store.layout import (
    ALIASES,
    ANNOUNCEMENTS,
    BENCHMARKS,
    BLOBS,
    GATES,
    LEASES,
    MANIFESTS,
    PINS,
    PROBES,
    STAGES,
    SWEEP,
    TIMING,
)
from trtforge.store.manifests import Manifest, ManifestIdError
from trtforge.store.objects import NOT_FOUND, Bucket
from trtforge.store.records import RecordInvalidError, UnknownFormatError, now, parse_record
from trtforge.store.stages import StageResult

DAY_S = 24 * 3600.0
KINDS = ("engine", "stage record", "blob", "unfinished upload", "leftover")
Kind = Literal["engine", "stage record", "blob", "unfinished upload", "leftover"]

_ISSUES_S = 300.0
_CLOCK_S = 10.0  # S3 tells times in whole seconds, and its servers' clocks differ a little
_BACKOFF_S = 20.0  # the longest pause between two tries in botocore's standard mode
_KEYS_AT_ONCE = 5000
_UNREADABLE = (RecordInvalidError, UnknownFormatError, ManifestIdError)


class SweepRunningError(ServiceError):
    """Another `gc` is deleting, or was killed while it did."""


class SweepTooSlowError(ServiceError):
    """Deleting took longer than a sweep may; the rest is left for the next one."""


@dataclass(frozen=True)
class Rules:
    """What is old enough to go, in seconds.

    Attributes:
        keep_s: Engines and stage records younger than this stay.
        grace_s: Objects younger than this stay, whatever they are: somebody may be about to
            publish what needs them.
        uploads_s: Multipart uploads begun longer ago are aborted.
    """

    keep_s: float = 30 * DAY_S
    grace_s: float = DAY_S
    uploads_s: float = 7 * DAY_S


@dataclass(frozen=True)
class Garbage:
    """One thing that nothing needs: an object, or an upload that was never completed."""

    kind: Kind
    key: str
    size_bytes: int
    upload: Upload | None = None


def find_garbage(bucket: Bucket, rules: Rules | None = None) -> list[Garbage]:
    """What `delete_garbage` would delete. Changes nothing."""
    return _Gc(bucket, rules or Rules()).find()


def delete_garbage(
    bucket: Bucket, rules: Rules | None = None, on_progress: OnProgress = ignore
) -> list[Garbage]:
    """Delete what nothing needs, and return what was deleted. May run while engines are published.

    Raises:
        SweepRunningError: Another one is at it.
        SweepTooSlowError: The service is too slow; run it again.
    """
    return _Gc(bucket, rules or Rules()).delete(on_progress)


class _Gc:
    def __init__(self, bucket: Bucket, rules: Rules) -> None:
        self._bucket = bucket
        self._rules = rules
        self._reader = Reader(bucket)

    def find(self) -> list[Garbage]:
        records = self._records()
        gone = {item.key for item in records}
        return [*records, *self._blobs(gone), *self._uploads(), *self._leftovers()]

    def delete(self, on_progress: OnProgress) -> list[Garbage]:
        deleted: list[Garbage] = []

        def tell() -> None:
            on_progress(Progress("freeing space", len(deleted), None, "steps"))

        # Records first: a blob goes only when no record names it any more.
        for find in (self._records, self._blobs):
            for condemned in _batches(find()):
                deleted += self._sweep(condemned, find)
                tell()
        for upload in self._uploads():
            if upload.upload and abort(self._bucket, upload.upload):
                deleted.append(upload)
        leftovers = self._leftovers()
        in_parallel(lambda item: self._bucket.delete(item.key), leftovers)
        deleted += leftovers
        tell()
        return deleted

    # Mark

    def _records(self) -> list[Garbage]:
        """Engines and stage records that nothing keeps."""
        announced = self._announced()
        kept = announced | self._rooted()
        manifests = list(listed(self._bucket, MANIFESTS))
        old = [item for item in manifests if item.age_s > self._rules.keep_s]
        engines = [item for item in self._aged(old) if _name(item) not in kept]
        gone = {item.key for item in engines}
        staying = self._reader.all(item for item in manifests if item.key not in gone)
        stages = list(listed(self._bucket, STAGES))
        aged = [item for item in self._aged(stages) if item.age_s > self._rules.keep_s]
        made = self._reader.all(aged)
        descent = _Descent(staying)
        idle = [i for i in aged if i.key in made and not descent.includes(made[i.key], i.key)]
        return [
            *(Garbage("engine", item.key, item.size_bytes) for item in engines),
            *(Garbage("stage record", item.key, item.size_bytes) for item in idle),
        ]

    def _blobs(self, gone: Iterable[str] = ()) -> list[Garbage]:
        """Blobs that no record names, not counting the records with a key in `gone`."""
        needed = set(self._announced())
        without = set(gone)
        # Everything but blobs is small; but runs hold raw data, and nobody finds blobs by them.
        for prefix in (MANIFESTS, STAGES, TIMING, PINS, GATES):
            records = [item for item in listed(self._bucket, prefix) if item.key not in without]
            for data in self._reader.all(r for r in records if r.key.endswith(".json")).values():
                needed |= digests_in(data)
        return [
            Garbage("blob", item.key, item.size_bytes)
            for item in self._aged(listed(self._bucket, BLOBS))
            if _name(item) not in needed
        ]

    def _announced(self) -> set[str]:
        """Read before any record: who withdraws has written the record by then."""
        recent = [i for i in listed(self._bucket, ANNOUNCEMENTS) if i.age_s <= ANNOUNCED_S]
        found = self._reader.all(recent).values()
        return {digest for data in found for digest in digests_in(data)}

    def _rooted(self) -> set[str]:
        """Engines that aliases and pins name."""
        kept = {_name(pin) for pin in listed(self._bucket, PINS)}
        for key, data in self._reader.all(listed(self._bucket, ALIASES)).items():
            try:
                record = parse_record(AliasRecord, data, self._bucket.uri(key))
                kept |= {engine for engine in (record.engine_id, record.previous) if engine}
            except _UNREADABLE:
                kept |= digests_in(data)
        return kept

    def _uploads(self) -> list[Garbage]:
        return [
            Garbage("unfinished upload", upload.key, upload.size_bytes, upload)
            for upload in unfinished(self._bucket, self._rules.uploads_s)
        ]

    def _leftovers(self) -> list[Garbage]:
        """What killed processes left of probes, leases and announcements; verdicts on and
        benchmarks of engines that are gone."""
        # A living holder renews its lease every few seconds.
        found = [
            i for kind in (PROBES, LEASES) for i in listed(self._bucket, kind) if i.age_s > DAY_S
        ]
        found += [i for i in listed(self._bucket, ANNOUNCEMENTS) if i.age_s > 2 * ANNOUNCED_S]
        engines = {_name(item) for item in listed(self._bucket, MANIFESTS)}
        told = (GATES, BENCHMARKS)
        verdicts = self._aged(i for kind in told for i in listed(self._bucket, kind))
        found += [item for item in verdicts if item.key.split("/")[1] not in engines]
        return [Garbage("leftover", item.key, item.size_bytes) for item in found]

    def _aged(self, items: Iterable[Listed]) -> list[Listed]:
        return [item for item in items if item.age_s > self._rules.grace_s]

    # Sweep

    def _sweep(
        self, condemned: Sequence[Garbage], find: Callable[[], list[Garbage]]
    ) -> list[Garbage]:
        """Delete those of `condemned` that `find` finds again, now that they are condemned."""
        etag, deadline = self._condemn([item.key for item in condemned])
        over = True
        try:
            still = {item.key for item in find()}
            doomed = [item for item in condemned if item.key in still]
            over = False  # a request that got no answer may take effect later
            deleted = in_parallel(lambda item: self._delete(item.key, deadline), doomed)
            over = True
        finally:
            if over:
                self._pardon(etag)
        if not all(deleted):
            raise SweepTooSlowError(
                f"{deleted.count(False)} of {len(doomed)} deletions were not begun within "
                f"{_ISSUES_S:.0f} s",
                remedy="What nothing needs can go later: run the same command again",
            )
        return doomed

    def _delete(self, key: str, deadline: float) -> bool:
        if time.monotonic() > deadline:
            return False
        self._bucket.delete(key)
        return True

    def _condemn(self, keys: Sequence[str]) -> tuple[str, float]:
        """Tell all publishers; returns the ETag of the list and when to stop deleting."""
        running = running_sweep(self._bucket)
        if running and running.left_s >= 0:
            raise self._running(running.left_s)
        if running:
            self._pardon(running.etag)
        deadline = time.monotonic() + _ISSUES_S
        sweep = Sweep(
            id=uuid.uuid4().hex,
            condemned=tuple(keys),
            lasts_s=_ISSUES_S + _longest_request_s(self._bucket) + _CLOCK_S,
            at=now(),
        )
        self._bucket.put_if_absent(SWEEP, sweep.to_bytes())
        # Asked for, since a creation whose answer was lost is sent again, and finds itself there.
        found = running_sweep(self._bucket)
        if found is None or found.sweep.id != sweep.id:
            raise self._running(found.left_s if found else 0)
        return found.etag, deadline

    def _pardon(self, etag: str) -> None:
        """Remove the list, if it is still the same one."""
        with self._bucket.calling():
            try:
                self._bucket.client.delete_object(Bucket=self._bucket.name, Key=SWEEP, IfMatch=etag)
            except ClientError as error:
                if error_code(error) not in NOT_FOUND | {"412", "PreconditionFailed"}:
                    raise

    def _running(self, left_s: float) -> SweepRunningError:
        return SweepRunningError(
            "another `trtforge store gc` is deleting, or was killed while it did",
            field="object",
            value=self._bucket.uri(SWEEP),
            remedy=f"Run it again when that one has ended, at the latest in {max(left_s, 1):.0f} s",
        )


class _Descent:
    """Which stage records the engines that stay descend from."""

    def __init__(self, manifests: Mapping[str, bytes]) -> None:
        self._engines = {key.removeprefix(MANIFESTS)[:64] for key in manifests}
        self._files: set[str] = set()
        self._named: set[str] = set()
        for key, data in manifests.items():
            try:
                manifest = parse_record(Manifest, data, key)
            except _UNREADABLE:
                self._named |= digests_in(data)
                self._files |= digests_in(data)
                continue
            files = {ref.sha256 for ref in manifest.core.files}
            self._files |= files
            self._named |= digests_in(data) - files

    def includes(self, data: bytes, key: str) -> bool:
        try:
            result = parse_record(StageResult, data, key)
        except _UNREADABLE:
            return True
        outputs = result.outputs
        if result.inputs.get("engine_id") in self._engines:
            return True
        if not outputs:
            return False
        # Engines share small files, such as a tokenizer, with models they do not come from.
        largest = max(outputs, key=lambda ref: ref.size_bytes)
        return (
            largest.sha256 in self._files
            or files_digest(outputs) in self._named
            or any(ref.sha256 in self._named for ref in outputs)
        )


def _name(item: Listed) -> str:
    return item.key.rpartition("/")[2].removesuffix(".json")


def _batches(items: Sequence[Garbage]) -> Iterator[Sequence[Garbage]]:
    for start in range(0, len(items), _KEYS_AT_ONCE):
        yield items[start : start + _KEYS_AT_ONCE]


def _longest_request_s(bucket: Bucket) -> float:
    """The longest time in which a request of this client gets its answer or is given up."""
    config = bucket.client.meta.config
    attempts = (config.retries or {}).get("total_max_attempts", 5)
    return float(attempts * (config.connect_timeout + config.read_timeout + _BACKOFF_S))
