"""A blob's multipart upload that nobody finished: finding it again, so that work is not lost."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from trtforge.store.client import error_code
from trtforge.store.objects import Bucket
from trtforge.store.splitting import Piece

NO_SUCH_UPLOAD = {"404", "NoSuchUpload"}
_NOT_LISTABLE = {"403", "405", "501", "AccessDenied", "MethodNotAllowed", "NotImplemented"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredPart:
    """A part that the service holds. `crc32` is base64; None where the service lists none."""

    size_bytes: int
    etag: str
    crc32: str | None


@dataclass(frozen=True)
class Unfinished:
    """A multipart upload that was begun, and the parts it has."""

    key: str
    upload_id: str
    parts: Mapping[int, StoredPart]

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts.values())

    def address(self, bucket: Bucket) -> dict[str, str]:
        """The arguments that all requests about it have in common."""
        return {"Bucket": bucket.name, "Key": self.key, "UploadId": self.upload_id}


def begin(bucket: Bucket, key: str, sha256: str) -> Unfinished:
    """Begin an upload for the blob `sha256`."""
    request = {"Bucket": bucket.name, "Key": key, "ContentType": "application/octet-stream"}
    if bucket.sends_checksums:
        request["ChecksumAlgorithm"] = "CRC32"
    with bucket.calling():
        answer = bucket.persist(
            lambda: bucket.client.create_multipart_upload(**request, Metadata={"sha256": sha256})
        )
    return Unfinished(key, answer["UploadId"], {})


def find(bucket: Bucket, key: str, pieces: Sequence[Piece]) -> Unfinished | None:
    """The unfinished upload of `key` that has most of `pieces`.

    None as well where the service does not let us look. One that was cut up differently, by
    somebody with another part size, is of no use here.
    """
    lengths = {piece.number: piece.length for piece in pieces}
    best = None
    for upload_id in _upload_ids(bucket, key):
        parts = _parts(bucket, key, upload_id)
        if parts is None or any(lengths.get(n) != p.size_bytes for n, p in parts.items()):
            continue
        found = Unfinished(key, upload_id, parts)
        best = max(best or found, found, key=lambda upload: upload.size_bytes)
    return best


def abort(bucket: Bucket, upload: Unfinished) -> None:
    """Give an upload up; no error when it has gone already."""
    with bucket.calling():
        try:
            bucket.client.abort_multipart_upload(**upload.address(bucket))
        except ClientError as error:
            if error_code(error) not in NO_SUCH_UPLOAD:
                raise


def _upload_ids(bucket: Bucket, key: str) -> Iterator[str]:
    request: dict[str, Any] = {"Bucket": bucket.name, "Prefix": key}
    while True:
        with bucket.calling():
            try:
                page = bucket.persist(lambda: bucket.client.list_multipart_uploads(**request))
            except ClientError as error:
                if error_code(error) not in _NOT_LISTABLE:
                    raise
                _log.info("unfinished uploads cannot be listed (%s)", error_code(error))
                return
        for item in page.get("Uploads", []):
            if item["Key"] == key:
                yield item["UploadId"]
        if not page.get("IsTruncated"):
            return
        request["KeyMarker"] = page["NextKeyMarker"]
        request["UploadIdMarker"] = page["NextUploadIdMarker"]


def _parts(bucket: Bucket, key: str, upload_id: str) -> dict[int, StoredPart] | None:
    """By their numbers; None when somebody has finished the upload, or given it up."""
    request: dict[str, Any] = {"Bucket": bucket.name, "Key": key, "UploadId": upload_id}
    parts = {}
    while True:
        with bucket.calling():
            try:
                page = bucket.persist(lambda: bucket.client.list_parts(**request))
            except ClientError as error:
                if error_code(error) in NO_SUCH_UPLOAD | _NOT_LISTABLE:
                    return None
                raise
        for part in page.get("Parts", []):
            parts[part["PartNumber"]] = StoredPart(
                part["Size"], part["ETag"], part.get("ChecksumCRC32")
            )
        if not page.get("IsTruncated"):
            return parts
        request["PartNumberMarker"] = page["NextPartNumberMarker"]
