"""A blob on its way to a file: in parallel ranges, taken up again, hashed, and mended.

The file is at any time a prefix of the blob, so that whoever goes on with it needs no journal. It
is hashed front to back while it grows. All ranges are of one version of the object (`If-Match`).

When the digest comes out wrong, each range is fetched again until two fetches agree: this finds
the range that was damaged on its way, or on this disk, without doing without the others. When they
agree and the digest is wrong still, the bytes in the store are wrong.
"""

import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from typing import Any, BinaryIO

from botocore.exceptions import ClientError, IncompleteReadError

from trtforge.store.client import error_code
from trtforge.store.layout import blob_key
from trtforge.store.objects import NOT_FOUND, Bucket
from trtforge.store.splitting import Piece, split
from trtforge.store.transfer import CONNECTIONS, BlobCorruptError, BlobMissingError, ByteMeter
from trtforge.write_back import EVERY_BYTES, begin_write_back

RANGE_BYTES = 16 << 20
"""Size of the ranges; smaller blobs come in one request."""

_READ_AHEAD = 2
_READ_BYTES = 1 << 18
_MENDINGS = 3
_FETCHES = 5
_CHANGED = {"412", "416", "PreconditionFailed", "InvalidRange"}
_log = logging.getLogger(__name__)


def download(
    bucket: Bucket,
    sha256: str,
    size_bytes: int,
    stream: BinaryIO,
    meter: ByteMeter,
    range_bytes: int = RANGE_BYTES,
) -> None:
    """Fill `stream`, a file open for reading and writing, with the blob; go on with what it has.

    Raises:
        BlobMissingError: There is no such blob; `stream` is empty.
        BlobCorruptError: The stored size or digest is wrong; `stream` is empty.
    """
    try:
        with bucket.calling():
            _Download(bucket, sha256, size_bytes, stream, meter, range_bytes).run()
    except (BlobMissingError, BlobCorruptError):
        stream.truncate(0)
        raise


class _ReplacedError(Exception):
    """The object is not, or no longer, what its first range was taken from."""


class _Download:
    def __init__(
        self,
        bucket: Bucket,
        sha256: str,
        size_bytes: int,
        stream: BinaryIO,
        meter: ByteMeter,
        range_bytes: int,
    ) -> None:
        self._bucket = bucket
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._stream = stream
        self._meter = meter
        self._range_bytes = range_bytes
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            with self._meter.attempt() as add:
                if self._append(add) == self._sha256:
                    return
                raise _ReplacedError
        except _ReplacedError:
            _log.warning("blob %s came out wrong; looking for the damage", self._sha256)
        for _ in range(_MENDINGS):
            try:
                with self._meter.attempt() as add:
                    mended = self._mend(add)
                    if self._digest() == self._sha256:
                        return
                    if not mended:
                        break
                    raise _ReplacedError
            except _ReplacedError:
                _log.warning("blob %s is still wrong", self._sha256)
        raise self._corrupt()

    def _append(self, add: Callable[[int], None]) -> str:
        """Fetch what the file has not got yet; returns the digest of the whole."""
        state = hashlib.sha256()
        have = self._hash_prefix(state, add)
        pieces = (
            split(self._size_bytes, self._range_bytes, have) if self._size_bytes else [_NOTHING]
        )
        etag = self._etag()
        waiting: deque[tuple[Piece, Future[bytearray]]] = deque()
        free: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(min(len(pieces), CONNECTIONS + 2 * _READ_AHEAD)):
            free.put(bytearray(pieces[0].length))
        unwritten_bytes = 0

        def fetch(piece: Piece, buffer: bytearray) -> bytearray:
            with memoryview(buffer) as view:
                self._fetch(piece, etag, view[: piece.length])
            return buffer

        def absorb(buffer: bytearray, length: int) -> None:
            with memoryview(buffer) as view:
                state.update(view[:length])
            free.put(buffer)

        with (
            ThreadPoolExecutor(1) as hasher,
            ThreadPoolExecutor(CONNECTIONS) as fetchers,
        ):

            def take() -> None:
                nonlocal unwritten_bytes
                piece, fetched = waiting.popleft()
                buffer = fetched.result()
                with memoryview(buffer) as view:
                    self._stream.write(view[: piece.length])
                hasher.submit(absorb, buffer, piece.length)
                add(piece.length)
                unwritten_bytes += piece.length
                if unwritten_bytes >= EVERY_BYTES:
                    begin_write_back(self._stream.fileno())
                    unwritten_bytes = 0

            try:
                for piece in pieces:
                    waiting.append((piece, fetchers.submit(fetch, piece, free.get())))
                    if len(waiting) == CONNECTIONS + _READ_AHEAD:
                        take()
                while waiting:
                    take()
            except BaseException:
                self._stopped.set()
                fetchers.shutdown(wait=False, cancel_futures=True)
                raise
        self._stream.flush()
        return state.hexdigest()

    def _mend(self, add: Callable[[int], None]) -> bool:
        """Fetch every range until two fetches agree; returns whether any was changed."""
        self._stopped.clear()
        self._stream.flush()
        etag = self._etag()
        handle = self._stream.fileno()
        os.ftruncate(handle, min(os.fstat(handle).st_size, self._size_bytes))

        def settle(piece: Piece) -> bool:
            have = os.pread(handle, piece.length, piece.offset)
            data = bytearray(piece.length)
            changed = False
            for _ in range(_FETCHES):
                with memoryview(data) as view:
                    self._fetch(piece, etag, view)
                if data == have:
                    add(piece.length)
                    return changed
                _log.warning("bytes %d to %d differ", piece.offset, piece.end)
                _write(handle, data, piece.offset)
                have, changed = bytes(data), True
            raise self._corrupt()

        with ThreadPoolExecutor(CONNECTIONS) as fetchers:
            try:
                return any(list(fetchers.map(settle, split(self._size_bytes, self._range_bytes))))
            except BaseException:
                self._stopped.set()
                fetchers.shutdown(wait=False, cancel_futures=True)
                raise

    def _hash_prefix(self, state: Any, add: Callable[[int], None]) -> int:
        self._stream.seek(0)
        while data := self._stream.read(self._range_bytes):
            state.update(data)
        have = self._stream.tell()
        if have > self._size_bytes:
            raise _ReplacedError
        if have:
            _log.info("going on with blob %s at byte %d", self._sha256, have)
            add(have)
        return have

    def _digest(self) -> str:
        self._stream.seek(0)
        state = hashlib.sha256()
        while data := self._stream.read(self._range_bytes):
            state.update(data)
        return state.hexdigest()

    def _etag(self) -> str | None:
        """The version to take all ranges from; a single request needs none."""
        if self._size_bytes <= self._range_bytes:
            return None
        answer = self._ask(
            lambda: self._bucket.client.head_object(
                Bucket=self._bucket.name, Key=blob_key(self._sha256)
            )
        )
        if answer["ContentLength"] != self._size_bytes:
            raise self._corrupt()
        etag: str = answer["ETag"]
        return etag

    def _fetch(self, piece: Piece, etag: str | None, into: memoryview) -> None:
        """Fill `into` with the bytes of a piece."""
        request = {"Bucket": self._bucket.name, "Key": blob_key(self._sha256)}
        if piece.length != self._size_bytes:
            request["Range"] = f"bytes={piece.offset}-{piece.end - 1}"
        if etag is not None:
            request["IfMatch"] = etag

        def attempt() -> None:
            answer = self._bucket.client.get_object(**request)
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] != piece.length:
                    raise self._corrupt()
                done = 0
                while done < piece.length:
                    count = body.readinto(into[done : done + _READ_BYTES])
                    if not count:
                        raise IncompleteReadError(actual_bytes=done, expected_bytes=piece.length)
                    done += count
                # At the end botocore compares a checksum that came with it.
                body.read()

        self._ask(attempt)

    def _ask(self, attempt: Callable[[], Any]) -> Any:
        try:
            return self._bucket.persist(attempt, self._stopped)
        except ClientError as error:
            if error_code(error) in _CHANGED:
                raise _ReplacedError from error
            if error_code(error) not in NOT_FOUND:
                raise
            raise BlobMissingError(
                f"the store has no blob {self._bucket.uri(blob_key(self._sha256))}",
                field="sha256",
                value=self._sha256,
                remedy="Run the stage that made it again",
            ) from error

    def _corrupt(self) -> BlobCorruptError:
        return BlobCorruptError(
            f"the bytes of {self._bucket.uri(blob_key(self._sha256))} do not match its name",
            field="sha256",
            value=self._sha256,
            remedy="Delete that object and run again; look at the disk of the object storage",
        )


_NOTHING = Piece(1, 0, 0)


def _write(handle: int, data: bytes | bytearray, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(data):
            done += os.pwrite(handle, view[done:], offset + done)
