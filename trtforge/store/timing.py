"""Timing caches (`model.cache`): the newest one per toolchain, so that a build starts warm.

They only save time. Whatever is wrong with a stored one, the build goes on without it.

Builders of the same toolchain start from the same head and finish in any order. The head is moved
by compare-and-swap, and what another builder put there meanwhile is never dropped:

* A backend that can merge (`CacheFormat`) gets both files; what it makes of them is uploaded and
  becomes the head, again by compare-and-swap, until nobody came in between.
* Of a backend that cannot, the last writer wins, and the head keeps naming the files it replaced
  (`previous`, the latest 8), for a driver that can combine them; TensorRT does so only inside
  itself (`ITimingCache::combine`).

A head that the builder started from is simply replaced: a compiler carries over what it was given.
"""

import logging
import tempfile
from pathlib import Path

from pydantic import AwareDatetime, Field

from trtforge.canonical import sha256_file
from trtforge.engines.base import CacheFormat
from trtforge.files import FileRef
from trtforge.store.blobs import Blobs
from trtforge.store.layout import timing_key
from trtforge.store.objects import Bucket
from trtforge.store.records import (
    Part,
    Record,
    RecordInvalidError,
    Sha256,
    UnknownFormatError,
    now,
    parse_record,
)
from trtforge.store.transfer import BlobCorruptError, BlobMissingError

_KEPT = 8
_log = logging.getLogger(__name__)


class TimingBlob(Part):
    """A timing cache that another one has replaced."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class TimingHead(Record):
    """The newest timing cache of a toolchain.

    Attributes:
        entries: Tactics measured in it, where the backend can tell.
        previous: Those it replaced and does not contain, the latest first.
    """

    sha256: Sha256
    size_bytes: int = Field(ge=0)
    entries: int | None = None
    at: AwareDatetime
    previous: tuple[TimingBlob, ...] = Field(default=(), exclude_if=lambda value: not value)


class TimingCaches:
    """The timing caches of a bucket."""

    def __init__(self, bucket: Bucket, blobs: Blobs) -> None:
        self._bucket = bucket
        self._blobs = blobs

    def get(self, toolchain_key: str, dest: Path) -> FileRef | None:
        """See `Store.get_timing_cache`."""
        stored = self._bucket.get(timing_key(toolchain_key))
        if stored is None:
            return None
        try:
            head = self._parse(toolchain_key, stored.data)
            self._blobs.get_file(head.sha256, head.size_bytes, dest, verify=True)
        except _UNUSABLE as error:
            _log.warning("building without a timing cache: %s", error)
            return None
        return FileRef(dest.name, head.size_bytes, head.sha256)

    def put(
        self,
        toolchain_key: str,
        path: Path,
        *,
        entries: int | None = None,
        started_from: str | None = None,
        cache_format: CacheFormat | None = None,
    ) -> FileRef:
        """Make `path`, and what others found out meanwhile, the newest timing cache.

        Args:
            entries: In `path`, where the backend can tell.
            started_from: Digest of the cache that `path` was made from, as `get` gave it.
            cache_format: Of the backend, if it can merge.

        Returns:
            The file that is the head now: `path`, or the merged one.

        Raises:
            ContendedError: Others moved the head every time.
            ConditionalWritesError: The service has none; the head could lose others' work.
            UnknownFormatError: A newer version of trtforge wrote the head.
        """
        with tempfile.TemporaryDirectory(prefix="merge-", dir=path.parent) as scratch:
            draft = _Draft(path, entries, started_from, cache_format, Path(scratch))

            def decide(data: bytes | None) -> bytes | None:
                head = self._head(toolchain_key, data) if data is not None else None
                if head and head.sha256 == draft.ref.sha256:
                    return None
                previous = self._bring_in(draft, head) if head else ()
                if head and head.sha256 == draft.ref.sha256:
                    return None
                self._blobs.put_file(draft.path, draft.ref)
                return TimingHead(
                    sha256=draft.ref.sha256,
                    size_bytes=draft.ref.size_bytes,
                    entries=draft.entries,
                    at=now(),
                    previous=previous,
                ).to_bytes()

            self._bucket.update(timing_key(toolchain_key), decide)
        return FileRef(path.name, draft.ref.size_bytes, draft.ref.sha256)

    def _bring_in(self, draft: "_Draft", head: TimingHead) -> tuple[TimingBlob, ...]:
        """Add what `head` has to the draft; returns what the draft replaces and does not have."""
        if head.sha256 == draft.contains:
            return head.previous
        if draft.format is None:
            replaced = TimingBlob(sha256=head.sha256, size_bytes=head.size_bytes)
            others = (blob for blob in head.previous if blob.sha256 != draft.ref.sha256)
            return (replaced, *others)[:_KEPT]
        theirs = draft.scratch / f"{head.sha256}.cache"
        try:
            self._blobs.get_file(head.sha256, head.size_bytes, theirs, verify=True)
        except _UNUSABLE as error:
            _log.warning("replacing the stored timing cache: %s", error)
        else:
            draft.merge(theirs, head.sha256)
        return head.previous

    def _head(self, toolchain_key: str, data: bytes) -> TimingHead | None:
        """The stored head; None when it is damaged and best overwritten."""
        try:
            return self._parse(toolchain_key, data)
        except RecordInvalidError as error:
            _log.warning("replacing it: %s", error)
            return None

    def _parse(self, toolchain_key: str, data: bytes) -> TimingHead:
        return parse_record(TimingHead, data, self._bucket.uri(timing_key(toolchain_key)))


class _Draft:
    """The file that shall become the head, and which head's entries are in it."""

    def __init__(
        self,
        path: Path,
        entries: int | None,
        contains: str | None,
        cache_format: CacheFormat | None,
        scratch: Path,
    ) -> None:
        self.path = path
        self.ref = _describe(path)
        self.entries = entries
        self.contains = contains
        self.format = cache_format
        self.scratch = scratch

    def merge(self, theirs: Path, digest: str) -> None:
        assert self.format is not None
        merged = self.scratch / f"merged-with-{digest}.cache"
        complaint = self.format.merge(self.path, theirs, merged)
        if complaint:
            _log.warning("merging timing caches: %s", complaint)
        self.path, self.ref, self.contains = merged, _describe(merged), digest
        self.entries = self.format.count(merged)


def _describe(path: Path) -> FileRef:
    return FileRef(path.name, path.stat().st_size, sha256_file(path))


_UNUSABLE = (BlobCorruptError, BlobMissingError, RecordInvalidError, UnknownFormatError)
