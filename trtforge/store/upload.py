"""A file on its way into the bucket: read once, hashed, checked on the wire, taken up again.

What keeps a wrong blob from becoming visible: the file is read once, front to back, and the very
memory that is hashed is sent. Only when the SHA-256 of the whole is right does the request follow
that makes the object visible. Each part carries a CRC-32 (or an MD5, for services without the
newer checksums), which the service checks, and is named by its ETag when they are put together.

What keeps work from being lost: parts stay with the service. Whoever uploads the same file next,
here or on another machine, finds the unfinished upload by listing and sends only the parts that
are missing; the others are recognised by their MD5 or CRC-32, not by trust. Of parts that were
being sent when a process died, less than one for each connection is sent again. Two who upload the
same file at once may work on the same upload: their parts are equal, and the one who finds it gone
looks whether the blob is there.
"""

import base64
import hashlib
import logging
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from botocore.config import Config
from botocore.exceptions import ClientError

from trtforge.errors import ServiceError
from trtforge.files import FileRef
from trtforge.store.client import error_code
from trtforge.store.layout import blob_key
from trtforge.store.multipart import NO_SUCH_UPLOAD, Unfinished, abort, begin, find
from trtforge.store.objects import Bucket
from trtforge.store.splitting import Piece, part_size, split
from trtforge.store.transfer import CONNECTIONS, ByteMeter, FileChangedError, file_changed

_MEMORY_BYTES = 256 << 20
_READ_AHEAD = 2
_STARTS = 3
# Parts are not those we mean, as somebody with a changed file sent them.
_WRONG_PARTS = {"BadDigest", "EntityTooSmall", "InvalidPart", "InvalidPartOrder"}
_log = logging.getLogger(__name__)


class UploadDisturbedError(ServiceError):
    """Uploads of a blob vanished before they could be finished, again and again."""


def upload(
    bucket: Bucket,
    path: Path,
    ref: FileRef,
    meter: ByteMeter,
    part_bytes: int,
    present: Callable[[], bool],
) -> None:
    """Store `path` as the blob `ref.sha256`, in one request if it is smaller than `part_bytes`.

    Args:
        present: Whether the bucket holds the blob, as somebody else may have brought it meanwhile.

    Raises:
        FileChangedError: The file is not what `ref` says; nothing became visible.
        UploadDisturbedError: Somebody aborts our uploads.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            if ref.size_bytes < part_bytes:
                _put(bucket, stream, path, ref, meter)
            else:
                _put_parts(bucket, stream, path, ref, meter, part_bytes, present)
    except FileNotFoundError:
        raise file_changed(path) from None


def put_whole(bucket: Bucket, ref: FileRef, data: bytes | bytearray) -> None:
    """Store `data`, which has been hashed, in one request; the service checks its digest too."""
    if bucket.sends_checksums:
        guard = {"ChecksumSHA256": _base64(bytes.fromhex(ref.sha256))}
    else:
        guard = {"ContentMD5": _base64(_md5(data).digest())}
    with bucket.calling():
        bucket.persist(
            lambda: bucket.client.put_object(
                Bucket=bucket.name,
                Key=blob_key(ref.sha256),
                Body=data,
                ContentType="application/octet-stream",
                Metadata={"sha256": ref.sha256},
                **guard,
            )
        )


def _put(bucket: Bucket, stream: Any, path: Path, ref: FileRef, meter: ByteMeter) -> None:
    data = bytearray(ref.size_bytes)
    _fill(stream, data, path)
    if stream.read(1) or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise file_changed(path)
    put_whole(bucket, ref, data)
    meter.add(ref.size_bytes)


def _put_parts(
    bucket: Bucket,
    stream: Any,
    path: Path,
    ref: FileRef,
    meter: ByteMeter,
    part_bytes: int,
    present: Callable[[], bool],
) -> None:
    key = blob_key(ref.sha256)
    pieces = split(ref.size_bytes, part_size(ref.size_bytes, part_bytes))
    for start in range(_STARTS):
        found = find(bucket, key, pieces) if start == 0 else None
        going = found or begin(bucket, key, ref.sha256)
        if found and found.parts:
            _log.info("%s: %d of %d parts are there", ref.path, len(found.parts), len(pieces))
        try:
            with bucket.calling(), meter.attempt() as add:
                stream.seek(0)
                parts = _send(bucket, stream, path, ref, going, pieces, add)
                _complete(bucket, going, parts, present)
                return
        except _SpoiltError:
            if not found:
                abort(bucket, going)
            if present():
                meter.add(ref.size_bytes)
                return
            _log.warning("%s: its upload has gone or was spoilt; beginning anew", ref.path)
        except FileChangedError:
            # Its parts are worthless; but what was found may be worked on by somebody else.
            if not found:
                abort(bucket, going)
            raise
    raise UploadDisturbedError(
        f"the upload of {bucket.uri(key)} vanished {_STARTS} times before it was complete",
        field="path",
        value=str(path),
        remedy="Look for something that aborts multipart uploads, such as a lifecycle rule of the "
        "bucket with too short a time",
    )


class _SpoiltError(Exception):
    """This multipart upload can no longer be finished."""


def _send(
    bucket: Bucket,
    stream: BinaryIO,
    path: Path,
    ref: FileRef,
    going: Unfinished,
    pieces: Sequence[Piece],
    add: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Read and hash the whole file, send the parts that are missing, and name all parts.

    Memory is a fixed number of buffers, each free again when it is both hashed and sent.
    """
    length = pieces[0].length
    buffers = max(2, min(CONNECTIONS + _READ_AHEAD, _MEMORY_BYTES // length, len(pieces) + 1))
    free: SimpleQueue[bytearray] = SimpleQueue()
    for _ in range(buffers):
        free.put(bytearray(length))
    stopped = threading.Event()
    state = hashlib.sha256()
    sent: list[Future[dict[str, Any]]] = []
    _skip_payload_hash(bucket)
    connections = max(1, min(CONNECTIONS, buffers - 1))
    with ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(connections) as senders:
        try:
            for piece in pieces:
                data = free.get()
                if stopped.is_set():
                    break
                if len(data) != piece.length:
                    data = bytearray(piece.length)
                _fill(stream, data, path)
                release = _Release(free, data)
                hasher.submit(state.update, data).add_done_callback(release)
                future = senders.submit(_send_part, bucket, going, piece, data, stopped)
                future.add_done_callback(_Counted(add, piece, stopped))
                future.add_done_callback(release)
                sent.append(future)
            # Failures first: after one of them the file was not read to its end.
            for future in sent:
                if future.done() and not future.cancelled() and future.exception():
                    future.result()
            hasher.submit(int).result()
            if stream.read(1) or state.hexdigest() != ref.sha256:
                raise file_changed(path)
            return [future.result() for future in sent]
        except BaseException:
            stopped.set()
            senders.shutdown(wait=False, cancel_futures=True)
            raise


class _Release:
    """Gives a buffer back when both of its users are done with it."""

    def __init__(self, free: "SimpleQueue[bytearray]", data: bytearray) -> None:
        self._free = free
        self._data = data
        self._users = 2
        self._lock = threading.Lock()

    def __call__(self, _: "Future[Any]") -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._free.put(self._data)


class _Counted:
    """Counts a part that arrived, and stops the reading after one that did not."""

    def __init__(self, add: Callable[[int], None], piece: Piece, stopped: threading.Event) -> None:
        self._add = add
        self._piece = piece
        self._stopped = stopped

    def __call__(self, future: "Future[Any]") -> None:
        if future.cancelled() or future.exception():
            self._stopped.set()
        else:
            self._add(self._piece.length)


def _send_part(
    bucket: Bucket, going: Unfinished, piece: Piece, data: bytearray, stopped: threading.Event
) -> dict[str, Any]:
    crc32 = _base64(zlib.crc32(data).to_bytes(4, "big"))
    named: dict[str, Any] = {"PartNumber": piece.number}
    if bucket.sends_checksums:
        named["ChecksumCRC32"] = crc32
    there = going.parts.get(piece.number)
    # An ETag is the MD5 of a part, but for some kinds of server-side encryption.
    if there and (there.etag.strip('"') == _md5(data).hexdigest() or there.crc32 == crc32):
        return named | {"ETag": there.etag}
    guard = {} if bucket.sends_checksums else {"ContentMD5": _base64(_md5(data).digest())}
    request = going.address(bucket) | named | guard
    try:
        answer = bucket.persist(lambda: bucket.client.upload_part(**request, Body=data), stopped)
    except ClientError as error:
        # An upload that was begun with other settings may refuse this kind of checksum.
        refused = bool(going.parts) and error_code(error) == "InvalidRequest"
        if refused or error_code(error) in NO_SUCH_UPLOAD:
            raise _SpoiltError from error
        raise
    return named | {"ETag": answer["ETag"]}


def _complete(
    bucket: Bucket,
    going: Unfinished,
    parts: Sequence[dict[str, Any]],
    present: Callable[[], bool],
) -> None:
    # An object that readers may be at is not replaced, not even by equal bytes.
    if present():
        abort(bucket, going)
        return

    def attempt() -> None:
        try:
            bucket.client.complete_multipart_upload(
                **going.address(bucket), MultipartUpload={"Parts": list(parts)}
            )
        except ClientError as error:
            if error_code(error) in NO_SUCH_UPLOAD | _WRONG_PARTS:
                raise _SpoiltError from error
            raise

    bucket.persist(attempt)


def _fill(stream: Any, data: bytearray, path: Path) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(data):
            count = stream.readinto(view[done:])
            if not count:
                raise file_changed(path)
            done += count


def _skip_payload_hash(bucket: Bucket) -> None:
    """Keep botocore from hashing parts once more for the signature, as it does over plain HTTP.

    A part's checksum is one of the signed headers, and the whole is known by its own digest.
    """
    bucket.client.meta.events.register(
        "before-sign.s3.UploadPart", _unsigned_payload, unique_id="trtforge-unsigned-payload"
    )


def _unsigned_payload(request: Any, **_: Any) -> None:
    config = request.context["client_config"]
    s3: Any = config.s3 or {}
    if s3.get("payload_signing_enabled") is None:
        s3 = s3 | {"payload_signing_enabled": False}
        request.context["client_config"] = config.merge(Config(s3=s3))


def _md5(data: bytes | bytearray) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
