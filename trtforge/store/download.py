"""A blob on its way to a file: in parallel ranges, taken up again, hashed, and mended.

The bytes of a range are written to their place while they are still in the processor's cache, and
hashed from there, in the order of the file. Whoever goes on with the file needs no journal: what it
has is all before the first hole. (A file system that cannot tell its holes costs a second fetch, no
more: the digest comes out wrong.) All ranges are of one version of the object (`If-Match`).

When the digest comes out wrong, each range is fetched again until two fetches agree: this finds
the range that was damaged on its way, or on this disk, without doing without the others. When they
agree and the digest is wrong still, the bytes in the store are wrong.
"""

import errno
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
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
_HASH_BYTES = 1 << 20
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
        os.ftruncate(stream.fileno(), 0)
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
        self._descriptor = stream.fileno()
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
        waiting: deque[tuple[Piece, Future[None]]] = deque()
        unwritten_bytes = 0
        with (
            ThreadPoolExecutor(1) as hasher,
            ThreadPoolExecutor(CONNECTIONS) as fetchers,
        ):
            hashed: deque[Future[None]] = deque()

            def take() -> None:
                nonlocal unwritten_bytes
                piece, fetched = waiting.popleft()
                fetched.result()
                hashed.append(hasher.submit(self._hash, state, piece.offset, piece.end))
                add(piece.length)
                unwritten_bytes += piece.length
                if unwritten_bytes >= EVERY_BYTES:
                    begin_write_back(self._descriptor)
                    unwritten_bytes = 0

            try:
                for piece in pieces:
                    waiting.append((piece, fetchers.submit(self._fetch, piece, etag)))
                    if len(waiting) == CONNECTIONS + _READ_AHEAD:
                        take()
                while waiting:
                    take()
                for each in hashed:
                    each.result()
            except BaseException:
                self._stopped.set()
                fetchers.shutdown(wait=False, cancel_futures=True)
                raise
        return state.hexdigest()

    def _mend(self, add: Callable[[int], None]) -> bool:
        """Fetch every range until two fetches agree; returns whether any was changed."""
        self._stopped.clear()
        etag = self._etag()
        os.ftruncate(self._descriptor, min(self._file_bytes(), self._size_bytes))

        def settle(piece: Piece) -> bool:
            have = os.pread(self._descriptor, piece.length, piece.offset)
            changed = False
            for _ in range(_FETCHES):
                self._fetch(piece, etag)
                data = os.pread(self._descriptor, piece.length, piece.offset)
                if data == have:
                    add(piece.length)
                    return changed
                _log.warning("bytes %d to %d differ", piece.offset, piece.end)
                have, changed = data, True
            raise self._corrupt()

        with ThreadPoolExecutor(CONNECTIONS) as fetchers:
            try:
                return any(list(fetchers.map(settle, split(self._size_bytes, self._range_bytes))))
            except BaseException:
                self._stopped.set()
                fetchers.shutdown(wait=False, cancel_futures=True)
                raise

    def _hash_prefix(self, state: Any, add: Callable[[int], None]) -> int:
        if self._file_bytes() > self._size_bytes:
            raise _ReplacedError
        have = _before_first_hole(self._descriptor)
        self._hash(state, 0, have)
        if have:
            _log.info("going on with blob %s at byte %d", self._sha256, have)
            add(have)
        return have

    def _digest(self) -> str:
        state = hashlib.sha256()
        self._hash(state, 0, self._file_bytes())
        return state.hexdigest()

    def _hash(self, state: Any, start: int, end: int) -> None:
        """Hash bytes of the file."""
        buffer = bytearray(_HASH_BYTES)
        with memoryview(buffer) as view:
            while start < end and not self._stopped.is_set():
                count = os.preadv(self._descriptor, [view[: min(_HASH_BYTES, end - start)]], start)
                if not count:
                    raise OSError(errno.EIO, "the file became shorter while it was read")
                state.update(view[:count])
                start += count

    def _file_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

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

    def _fetch(self, piece: Piece, etag: str | None) -> None:
        """Write the bytes of a piece to their place."""
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
                with memoryview(bytearray(min(_READ_BYTES, piece.length))) as view:
                    while done < piece.length:
                        count = body.readinto(view[: piece.length - done])
                        if not count:
                            raise IncompleteReadError(
                                actual_bytes=done, expected_bytes=piece.length
                            )
                        _write(self._descriptor, view[:count], piece.offset + done)
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


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _before_first_hole(descriptor: int) -> int:
    """How many bytes a file has that were all written."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # it is empty
            return 0
        raise
