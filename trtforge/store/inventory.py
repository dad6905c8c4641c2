"""What lies in the bucket, how old it is, and what names what."""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from trtforge.store.announce import answered_at
from trtforge.store.objects import Bucket, Stored
from trtforge.store.records import RecordT, parse_record

_AT_ONCE = 16
_SHA256 = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Listed:
    """One object of a listing; its age is told by the service's clock alone."""

    key: str
    size_bytes: int
    etag: str
    modified: datetime
    age_s: float


def listed(bucket: Bucket, prefix: str) -> Iterator[Listed]:
    """All objects under `prefix`, in the order of the service."""
    request = {"Bucket": bucket.name, "Prefix": prefix}
    while True:
        with bucket.calling():
            page = bucket.client.list_objects_v2(**request)
        now = answered_at(page)
        for item in page.get("Contents", []):
            modified = item["LastModified"]
            age_s = (now - modified).total_seconds()
            yield Listed(item["Key"], item["Size"], item["ETag"], modified, age_s)
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def digests_in(data: bytes) -> frozenset[str]:
    """Whatever looks like a SHA-256."""
    return frozenset(digest.decode() for digest in _SHA256.findall(data))


def in_parallel(work: Callable[[_T], _R], things: Iterable[_T]) -> list[_R]:
    """`work` of each, some at once, in the order of `things`."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(work, things))


def read_records(
    bucket: Bucket, kind: type[RecordT], keys: Iterable[str]
) -> Iterator[tuple[str, RecordT]]:
    """Records by key, in the order of the keys; one removed since they were listed is left out.

    Raises:
        UnknownFormatError, RecordInvalidError: One cannot be read.
    """
    listed = list(keys)
    for key, stored in zip(listed, in_parallel(bucket.get, listed), strict=True):
        if stored:
            yield key, parse_record(kind, stored.data, bucket.uri(key))


class Reader:
    """Reads small objects; those it has read under the same ETag it does not read again."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._read: dict[tuple[str, str], bytes] = {}

    def all(self, objects: Iterable[Listed]) -> dict[str, bytes]:
        """The bytes of each by its key; those removed since the listing are left out."""
        wanted = list(objects)
        missing = [item for item in wanted if (item.key, item.etag) not in self._read]

        def fetch(item: Listed) -> Stored | None:
            return self._bucket.get(item.key)

        for item, stored in zip(missing, in_parallel(fetch, missing), strict=True):
            if stored is not None:
                self._read[item.key, item.etag] = stored.data
        return {
            item.key: self._read[item.key, item.etag]
            for item in wanted
            if (item.key, item.etag) in self._read
        }
