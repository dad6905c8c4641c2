"""Timing caches (`model.cache`): the newest one per toolchain, so that a build starts warm.

They only save time. Whatever is wrong with a stored one, the build goes on without it.
"""

import logging
from pathlib import Path

from pydantic import AwareDatetime, Field

from trtforge.canonical import sha256_file
from trtforge.files import FileRef
from trtforge.store.blobs import Blobs
from trtforge.store.layout import timing_key
from trtforge.store.objects import Bucket
from trtforge.store.records import (
    Record,
    RecordInvalidError,
    Sha256,
    UnknownFormatError,
    now,
    parse_record,
)
from trtforge.store.transfer import BlobCorruptError, BlobMissingError

_log = logging.getLogger(__name__)


class TimingHead(Record):
    """The newest timing cache of a toolchain.

    Attributes:
        entries: Tactics measured in it, where the backend can tell.
    """

    sha256: Sha256
    size_bytes: int = Field(ge=0)
    entries: int | None = None
    at: AwareDatetime


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

    def put(self, toolchain_key: str, path: Path, *, entries: int | None = None) -> FileRef:
        """See `Store.put_timing_cache`."""
        ref = FileRef(path.name, path.stat().st_size, sha256_file(path))
        self._blobs.put_file(path, ref)

        def decide(data: bytes | None) -> bytes | None:
            if data is not None and self._names(toolchain_key, data) == ref.sha256:
                return None
            return TimingHead(
                sha256=ref.sha256, size_bytes=ref.size_bytes, entries=entries, at=now()
            ).to_bytes()

        self._bucket.update(timing_key(toolchain_key), decide)
        return ref

    def _names(self, toolchain_key: str, data: bytes) -> str | None:
        """The blob that the head points at; None when it is damaged and best overwritten."""
        try:
            return self._parse(toolchain_key, data).sha256
        except RecordInvalidError as error:
            _log.warning("replacing it: %s", error)
            return None

    def _parse(self, toolchain_key: str, data: bytes) -> TimingHead:
        return parse_record(TimingHead, data, self._bucket.uri(timing_key(toolchain_key)))


_UNUSABLE = (BlobCorruptError, BlobMissingError, RecordInvalidError, UnknownFormatError)
