"""One bucket and the few things the store does with small objects in it.

Conditional writes follow S3's rules: `If-None-Match: *` creates, `If-Match: <etag>` replaces; 412
means somebody else was first, 409 that two requests met and this one should try again
(docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). AWS answers 404 to
`If-Match` on a missing key, SeaweedFS 412.
"""

import copy
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from botocore.exceptions import ClientError

from trtforge.errors import ServiceError
from trtforge.store.client import S3Client, bucket_missing, error_code, shown_endpoint, translated
from trtforge.store.layout import probe_key
from trtforge.store.retry import PATIENCE_S, persist

_CONFLICT_ATTEMPTS = 8
_SWAP_ATTEMPTS = 64
_LONGEST_WAIT_S = 0.5
_T = TypeVar("_T")
NOT_FOUND = {"404", "NoSuchKey", "NotFound"}
_LOST = {"412", "PreconditionFailed"} | NOT_FOUND
_CONFLICT = {"409", "ConditionalRequestConflict", "OperationAborted"}
_UNSUPPORTED = {"501", "NotImplemented"}


class ConditionalWritesError(ServiceError):
    """The service ignores or does not know conditional writes, so two writers could collide."""


class ContendedError(ServiceError):
    """Other writers changed the same object again and again."""


@dataclass(frozen=True)
class Head:
    """What the service says of an object without sending it."""

    size_bytes: int
    etag: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Stored:
    """A small object and the ETag under which it was read."""

    data: bytes
    etag: str


class Bucket:
    """A bucket of one S3 service; may be used from several threads.

    The first request of an instance asks whether the bucket exists, since some services create a
    missing bucket at the first write and a misspelt name would go unnoticed. The first
    conditional write asks whether the service means them.

    A service that does not answer that first request is told of at once. One that has answered is
    waited for, whatever the request: work lies behind that would have to be done again.

    Args:
        patience_s: How long to wait for a service that fails.
    """

    def __init__(self, client: S3Client, name: str, patience_s: float = PATIENCE_S) -> None:
        self.client = client
        self.name = name
        self.endpoint_url: str = client.meta.endpoint_url
        self.patience_s = patience_s
        self._lock = threading.RLock()
        self._exists = False
        self._conditional = False

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Round every use of `client`: the bucket is known to exist, errors are translated."""
        with translated(self.endpoint_url, self.name):
            self._ensure_exists()
            yield

    @property
    def sends_checksums(self) -> bool:
        """Whether the service is said to know the newer checksum headers."""
        config = self.client.meta.config
        return bool(config.request_checksum_calculation == "when_supported")

    def persist(self, attempt: Callable[[], _T], stopped: threading.Event | None = None) -> _T:
        """Repeat a request, inside `calling()`, while its failure may pass; see `retry.persist`."""
        return persist(attempt, self.patience_s, stopped)

    def impatient(self) -> "Bucket":
        """This bucket, for requests that are better given up than waited for."""
        other = copy.copy(self)
        other.patience_s = 0.0
        return other

    def head(self, key: str) -> Head | None:
        with self.calling():
            try:
                answer = self.persist(lambda: self.client.head_object(Bucket=self.name, Key=key))
            except ClientError as error:
                if error_code(error) in NOT_FOUND:
                    return None
                raise
        return Head(answer["ContentLength"], answer["ETag"], answer.get("Metadata", {}))

    def get(self, key: str) -> Stored | None:
        def attempt() -> Stored:
            answer = self.client.get_object(Bucket=self.name, Key=key)
            return Stored(answer["Body"].read(), answer["ETag"])

        with self.calling():
            try:
                return self.persist(attempt)
            except ClientError as error:
                if error_code(error) in NOT_FOUND:
                    return None
                raise

    def put(self, key: str, data: bytes, content_type: str = "application/json") -> None:
        request = {"Bucket": self.name, "Key": key, "Body": data, "ContentType": content_type}
        with self.calling():
            self.persist(lambda: self.client.put_object(**request))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create the object; False when there is one already."""
        self.probe_conditional_writes()
        return self._put_if(key, data, {"IfNoneMatch": "*"})

    def swap(self, key: str, data: bytes, etag: str) -> bool:
        """Replace the object read under `etag`; False when it has changed or gone since."""
        self.probe_conditional_writes()
        return self._put_if(key, data, {"IfMatch": etag})

    def update(self, key: str, decide: Callable[[bytes | None], bytes | None]) -> bool:
        """Compare-and-swap until it holds.

        Args:
            decide: Gets the object as it is now (None: absent) and returns what it shall be, or
                None to leave it. Called again whenever another writer came in between.

        Returns:
            Whether this call wrote.

        Raises:
            ContendedError: Others won every time.
        """
        for attempt in range(_SWAP_ATTEMPTS):
            current = self.get(key)
            wanted = decide(current.data if current else None)
            if wanted is None:
                return False
            if current is None:
                written = self.put_if_absent(key, wanted)
            else:
                written = self.swap(key, wanted, current.etag)
            if written:
                return True
            _wait(attempt)
        raise ContendedError(
            f"{self.uri(key)} was changed by others {_SWAP_ATTEMPTS} times in a row",
            remedy="Try again when fewer runs publish to the same name",
        )

    def delete(self, key: str) -> None:
        with self.calling():
            self.persist(lambda: self.client.delete_object(Bucket=self.name, Key=key))

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys under `prefix`, in the order of the service."""
        request = {"Bucket": self.name, "Prefix": prefix}
        while True:
            with self.calling():
                page = self.persist(lambda: self.client.list_objects_v2(**request))
            for item in page.get("Contents", []):
                yield item["Key"]
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def probe_conditional_writes(self) -> None:
        """Check, once per instance, that the service honours conditional writes.

        Raises:
            ConditionalWritesError: It does not.
        """
        with self._lock:
            if self._conditional:
                return
            key = probe_key(uuid.uuid4().hex)
            try:
                self._probe(key)
            finally:
                # The probe's own answer matters more than a leftover of a few bytes.
                with suppress(ServiceError):
                    self.delete(key)
            self._conditional = True

    def _probe(self, key: str) -> None:
        create = {"IfNoneMatch": "*"}
        if not self._put_if(key, b'{"probe":1}', create):
            raise self._not_conditional("a new object could not be created with If-None-Match")
        first = self.head(key)
        if self._put_if(key, b'{"probe":2}', create):
            raise self._not_conditional("If-None-Match did not protect an existing object")
        if first is None or not self._put_if(key, b'{"probe":3}', {"IfMatch": first.etag}):
            raise self._not_conditional("If-Match refused the current ETag")
        if self._put_if(key, b'{"probe":4}', {"IfMatch": first.etag}):
            raise self._not_conditional("If-Match accepted a stale ETag")

    def _not_conditional(self, finding: str) -> ConditionalWritesError:
        return ConditionalWritesError(
            f"the object storage does not honour conditional writes ({finding})",
            field="endpoint_url",
            value=shown_endpoint(self.endpoint_url),
            remedy="Use a service that does: AWS S3, MinIO, SeaweedFS, Cloudflare R2 or a recent "
            "Ceph",
        )

    def _put_if(self, key: str, data: bytes, condition: dict[str, str]) -> bool:
        object_ = {"Body": data, "ContentType": "application/json"}
        request = {"Bucket": self.name, "Key": key} | object_ | condition
        for attempt in range(_CONFLICT_ATTEMPTS):
            with self.calling():
                try:
                    self.persist(lambda: self.client.put_object(**request))
                    return True
                except ClientError as error:
                    code = error_code(error)
                    if code in _LOST:
                        return False
                    if code in _UNSUPPORTED:
                        raise self._not_conditional(code) from error
                    if code not in _CONFLICT:
                        raise
            _wait(attempt)
        raise ContendedError(
            f"{self.uri(key)} is being written by others all the time",
            remedy="Try again when fewer runs publish to the same name",
        )

    def _ensure_exists(self) -> None:
        if self._exists:
            return
        try:
            self.client.head_bucket(Bucket=self.name)
        except ClientError as error:
            code = error_code(error)
            if code in {"404", "NoSuchBucket", "NotFound"}:
                raise bucket_missing(self.endpoint_url, self.name) from error
            # Keys that may use objects but not list the bucket get 403 here; the request that
            # follows tells whether they are any good.
            if code not in {"403", "AccessDenied", "Forbidden"}:
                raise
        self._exists = True


def _wait(attempt: int) -> None:
    time.sleep(random.uniform(0, min(0.01 * 2**attempt, _LONGEST_WAIT_S)))
