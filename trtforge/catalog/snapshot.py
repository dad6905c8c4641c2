"""A store that is read once and written never: what planning a whole catalogue looks at.

The cells of a catalogue share records (every GPU type's engine begins with the same pull), and all
of them ask for blobs. Here each object is read once, and after the first few blobs the rest is
looked up in a listing: a thousand for one request.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import islice
from typing import Any, Generic, TypeVar

from trtforge.errors import ServiceError
from trtforge.store import Store
from trtforge.store.aliases import Aliases
from trtforge.store.blobs import Blobs
from trtforge.store.inventory import in_parallel, listed
from trtforge.store.layout import BLOBS
from trtforge.store.manifests import Manifests
from trtforge.store.objects import Bucket, Head, Stored
from trtforge.store.sightings import Sightings
from trtforge.store.stages import Stages

_T = TypeVar("_T")
_BLOBS = f"{BLOBS}sha256/"
_ASKED_ONE_BY_ONE = 32
_LISTED_PER_DIGIT = 8000  # of each of the 16 first digits: eight requests, one after the other
_DIGITS = "0123456789abcdef"


class SnapshotReadOnlyError(ServiceError):
    """Something tried to write while a catalogue was planned."""


class Snapshot(Store):
    """The store as it is now. Writing raises `SnapshotReadOnlyError`; may be used by threads."""

    def __init__(self, store: Store) -> None:
        client, name = store.bucket.client, store.bucket.name
        super().__init__(client, name, store.cache.root, patience_s=store.bucket.patience_s)
        self.bucket = _ReadOnce(store.bucket)
        self.blobs = Blobs(self.bucket, store.cache)
        self.stages = Stages(self.bucket, self.blobs)
        self.manifests = Manifests(self.bucket, self.blobs)
        self.aliases = Aliases(self.bucket, self.manifests)
        self.sightings = Sightings(self.bucket)


class _ReadOnce(Bucket):
    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket.client, bucket.name, bucket.patience_s)
        self._objects: _Once[Stored | None] = _Once()
        self._heads: _Once[Head | None] = _Once()
        self._asked = 0
        self._listing: _Once[tuple[dict[str, int], dict[str, str]]] = _Once()

    def get(self, key: str) -> Stored | None:
        return self._objects(key, lambda: super(_ReadOnce, self).get(key))

    def head(self, key: str) -> Head | None:
        return self._heads(key, lambda: self._look(key))

    def put(self, key: str, data: bytes, content_type: str = "") -> None:
        del data, content_type
        raise self._read_only(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        del data
        raise self._read_only(key)

    def swap(self, key: str, data: bytes, etag: str) -> bool:
        del data, etag
        raise self._read_only(key)

    def delete(self, key: str) -> None:
        raise self._read_only(key)

    def probe_conditional_writes(self) -> None:
        raise self._read_only("probes/")

    def _look(self, key: str) -> Head | None:
        self._asked += 1
        if not key.startswith(_BLOBS) or self._asked <= _ASKED_ONE_BY_ONE:
            return super().head(key)
        sizes, ends = self._listing("", self._list_blobs)
        if key in sizes:
            # Whoever uploads a blob names its digest in the metadata, which listings do not tell.
            return Head(sizes[key], "", {"sha256": key.rpartition("/")[2]})
        end = ends.get(key.removeprefix(_BLOBS)[:1])
        return super().head(key) if end is not None and key > end else None

    def _list_blobs(self) -> tuple[dict[str, int], dict[str, str]]:
        """Sizes by key, and for each first digit with more blobs than that the last key listed."""
        sizes: dict[str, int] = {}
        ends: dict[str, str] = {}

        def some(digit: str) -> list[tuple[str, int]]:
            found = islice(listed(self, f"{_BLOBS}{digit}"), _LISTED_PER_DIGIT)
            return [(item.key, item.size_bytes) for item in found]

        for digit, found in zip(_DIGITS, in_parallel(some, _DIGITS), strict=True):
            sizes.update(found)
            if len(found) == _LISTED_PER_DIGIT:
                ends[digit] = found[-1][0]
        return sizes, ends

    def _read_only(self, key: str) -> SnapshotReadOnlyError:
        return SnapshotReadOnlyError(
            "planning a catalogue changes nothing in the store",
            field="key",
            value=key,
            remedy="This is a fault of trtforge: please report it",
        )


class _Once(Generic[_T]):
    """Does a thing once per key, however many threads ask for it at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: dict[str, Future[Any]] = {}

    def __call__(self, key: str, do: Callable[[], _T]) -> _T:
        with self._lock:
            future = self._done.get(key)
            first = future is None
            if future is None:
                future = self._done[key] = Future()
        if first:
            try:
                future.set_result(do())
            except BaseException as error:
                future.set_exception(error)
        result: _T = future.result()
        return result
