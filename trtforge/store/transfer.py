"""Bytes on their way between a file and the bucket: hashed as they pass, counted as they pass."""

import base64
import hashlib
import threading
from pathlib import Path
from typing import BinaryIO

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from s3transfer.exceptions import S3DownloadFailedError, S3ValidationError

from trtforge.errors import BuildError, ServiceError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, Progress
from trtforge.store.client import error_code
from trtforge.store.layout import blob_key
from trtforge.store.objects import NOT_FOUND, Bucket

PART_BYTES = 64 << 20
"""Size of the parts of a multipart upload; smaller files go in one request."""

_RANGE_BYTES = 16 << 20
_THREADS = 4
_MOST_PARTS = 10_000  # docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html


class FileChangedError(BuildError):
    """A file on this machine is not the one that its description says."""


class BlobMissingError(ServiceError):
    """The store has no blob of this name."""


class BlobCorruptError(ServiceError):
    """The bytes of a blob do not hash to its name."""


class ByteMeter:
    """Adds up the bytes of one step, from any thread, and tells `on_progress` each time."""

    def __init__(self, what: str, total: int, on_progress: OnProgress) -> None:
        self._what = what
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        # Inside the lock, so that listeners never see the count go back by overtaking.
        with self._lock:
            self._done += count
            self._on_progress(Progress(self._what, self._done, self._total, "bytes"))


def upload(bucket: Bucket, path: Path, ref: FileRef, meter: ByteMeter, part_bytes: int) -> None:
    """Store `path` as the blob `ref.sha256`.

    A blob whose bytes do not match its name never becomes visible, even when the file changes
    while it is sent: the file is read once, front to back, and what is hashed is the very memory
    that is sent. The last bytes are handed over only when the digest is right; otherwise the
    transfer fails before the request that would make the object visible (for one request: it is
    never sent; for a multipart upload: it is aborted instead of completed). This is why the file
    goes in as a stream that cannot seek, and not by `upload_file`, whose threads read it on their
    own. A file sent in one request carries its SHA-256 for the service to check as well; parts
    carry boto3's CRC.

    Raises:
        FileChangedError: The file is not what `ref` says.
    """
    size = max(part_bytes, -(-ref.size_bytes // (_MOST_PARTS - 1)))
    config = TransferConfig(
        multipart_threshold=size,
        multipart_chunksize=size,
        max_concurrency=_THREADS,
        # The CRT client reads as it likes.
        preferred_transfer_client="classic",
    )
    config.max_in_memory_upload_chunks = _THREADS
    extra = {"Metadata": {"sha256": ref.sha256}, "ContentType": "application/octet-stream"}
    if ref.size_bytes < size:
        extra["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(ref.sha256)).decode()
    with path.open("rb") as stream, bucket.calling():
        bucket.client.upload_fileobj(
            _CheckedReader(stream, ref, path),
            bucket.name,
            blob_key(ref.sha256),
            ExtraArgs=extra,
            Callback=meter.add,
            Config=config,
        )


def download(
    bucket: Bucket, sha256: str, size_bytes: int, stream: BinaryIO, meter: ByteMeter
) -> None:
    """Append the blob to `stream`, hashing it on the way; a failed attempt is taken off `meter`.

    Raises:
        BlobMissingError: There is no such blob.
        BlobCorruptError: Its size or digest is wrong; `stream` holds what came.
    """
    key = blob_key(sha256)
    config = TransferConfig(
        multipart_threshold=_RANGE_BYTES,
        multipart_chunksize=_RANGE_BYTES,
        max_concurrency=_THREADS,
        preferred_transfer_client="classic",
    )
    config.max_in_memory_download_chunks = _THREADS
    corrupt = BlobCorruptError(
        f"the bytes of {bucket.uri(key)} do not match its name",
        field="sha256",
        value=sha256,
        remedy="Delete that object and run again; look at the disk of the object storage",
    )
    writer = _CheckedWriter(stream, size_bytes, corrupt, meter)
    try:
        with bucket.calling():
            try:
                # A target that cannot seek gets parallel ranges in their order.
                bucket.client.download_fileobj(bucket.name, key, writer, Config=config)
            except ClientError as error:
                if error_code(error) not in NOT_FOUND:
                    raise
                raise BlobMissingError(
                    f"the store has no blob {bucket.uri(key)}",
                    field="sha256",
                    value=sha256,
                    remedy="Run the stage that made it again",
                ) from error
            except (S3DownloadFailedError, S3ValidationError) as error:
                # The object was replaced between two ranges, or one was answered wrongly.
                raise corrupt from error
        if writer.done != size_bytes or writer.hash.hexdigest() != sha256:
            raise corrupt
    except BaseException:
        meter.add(-writer.done)
        raise


class _CheckedReader:
    """A file that refuses to give its last bytes when they are not the ones promised."""

    def __init__(self, stream: BinaryIO, ref: FileRef, path: Path) -> None:
        self._stream = stream
        self._ref = ref
        self._path = path
        self._hash = hashlib.sha256()
        self._done = 0

    def read(self, amount: int = -1) -> bytes:
        chunk = self._stream.read(amount)
        self._hash.update(chunk)
        self._done += len(chunk)
        ended = not chunk or self._done >= self._ref.size_bytes
        if ended and (
            self._done != self._ref.size_bytes or self._hash.hexdigest() != self._ref.sha256
        ):
            raise file_changed(self._path)
        return chunk


class _CheckedWriter:
    """Hashes and counts what a download writes; raises `corrupt` at bytes beyond the size."""

    def __init__(
        self, stream: BinaryIO, size_bytes: int, corrupt: BlobCorruptError, meter: ByteMeter
    ) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        self._corrupt = corrupt
        self._meter = meter
        self.hash = hashlib.sha256()
        self.done = 0

    def write(self, chunk: bytes) -> None:
        if self.done + len(chunk) > self._size_bytes:
            raise self._corrupt
        self._stream.write(chunk)
        self.hash.update(chunk)
        self.done += len(chunk)
        self._meter.add(len(chunk))


def file_changed(path: Path) -> FileChangedError:
    """The error for a file that is missing, or has another size or digest than described."""
    return FileChangedError(
        "this file is missing, or was changed after it was described",
        field="path",
        value=str(path),
        remedy="Nothing was published; let no other process write there, and run again",
    )
