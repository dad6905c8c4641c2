"""A blob's bytes as they come, without a file and without holding them: to check, to pack."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ResponseStreamingError,
)

from trtforge.files import FileRef
from trtforge.store.client import error_code
from trtforge.store.layout import blob_key
from trtforge.store.objects import NOT_FOUND, Bucket
from trtforge.store.transfer import BlobCorruptError, BlobMissingError

_CHUNK_BYTES = 1 << 20
_CONNECTIONS = 5


def stored_chunks(bucket: Bucket, ref: FileRef) -> Iterator[bytes]:
    """The bytes of a blob; a connection that breaks off is taken up where it broke.

    The last chunk comes only when size and digest are right.

    Raises:
        BlobMissingError: There is no such blob.
        BlobCorruptError: Its size or digest is wrong.
    """
    key = blob_key(ref.sha256)
    state, done = hashlib.sha256(), 0
    held = b""
    broken = 0
    while done < ref.size_bytes or not done:
        with bucket.calling():
            body = _open(bucket, key, ref, done)
            try:
                for chunk in body.iter_chunks(_CHUNK_BYTES):
                    state.update(chunk)
                    done += len(chunk)
                    if done > ref.size_bytes:
                        raise _corrupt(bucket, ref)
                    if held:
                        yield held
                    held = chunk
                if done < ref.size_bytes:
                    raise _corrupt(bucket, ref)
                break
            except (IncompleteReadError, ResponseStreamingError, BotoCoreError):
                broken += 1
                if broken == _CONNECTIONS:
                    raise
            finally:
                body.close()
    if state.hexdigest() != ref.sha256:
        raise _corrupt(bucket, ref)
    if held:
        yield held


def file_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a local file."""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _open(bucket: Bucket, key: str, ref: FileRef, start: int) -> Any:
    request = {"Bucket": bucket.name, "Key": key}
    if start:
        request["Range"] = f"bytes={start}-"
    try:
        answer = bucket.client.get_object(**request)
    except ClientError as error:
        code = error_code(error)
        if code in NOT_FOUND:
            raise BlobMissingError(
                f"the store has no blob {bucket.uri(key)}",
                field="sha256",
                value=ref.sha256,
                remedy="Run the stage that made it again, or repair it with "
                "`trtforge store verify --repair`",
            ) from error
        if code in {"416", "InvalidRange"}:
            raise _corrupt(bucket, ref) from error
        raise
    if answer["ContentLength"] != ref.size_bytes - start:
        answer["Body"].close()
        raise _corrupt(bucket, ref)
    return answer["Body"]


def _corrupt(bucket: Bucket, ref: FileRef) -> BlobCorruptError:
    return BlobCorruptError(
        f"the bytes of {bucket.uri(blob_key(ref.sha256))} do not match its name",
        field="sha256",
        value=ref.sha256,
        remedy="Repair it with `trtforge store verify --repair`, and look at the disk of the "
        "object storage",
    )
