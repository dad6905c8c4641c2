"""Multipart uploads that were begun and neither completed nor aborted: they cost room, unseen."""

from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from trtforge.store.announce import answered_at
from trtforge.store.client import error_code
from trtforge.store.objects import Bucket

_GONE = {"404", "NoSuchUpload"}


@dataclass(frozen=True)
class Upload:
    """One of them, with the bytes of the parts that arrived; its age is by the service's clock."""

    key: str
    id: str
    size_bytes: int
    age_s: float


def unfinished(bucket: Bucket, older_than_s: float) -> list[Upload]:
    """Those begun longer ago than this, by the service's clock."""
    found = []
    request: dict[str, Any] = {"Bucket": bucket.name}
    while True:
        with bucket.calling():
            page = bucket.client.list_multipart_uploads(**request)
        now = answered_at(page)
        for item in page.get("Uploads", []):
            age_s = (now - item["Initiated"]).total_seconds()
            if age_s > older_than_s:
                key, upload_id = item["Key"], item["UploadId"]
                size_bytes = _size_bytes(bucket, key, upload_id)
                found.append(Upload(key, upload_id, size_bytes, age_s))
        if not page.get("IsTruncated"):
            return found
        request["KeyMarker"] = page["NextKeyMarker"]
        request["UploadIdMarker"] = page["NextUploadIdMarker"]


def abort(bucket: Bucket, upload: Upload) -> bool:
    """Abort it; False when it was completed or aborted meanwhile."""
    with bucket.calling():
        try:
            bucket.client.abort_multipart_upload(
                Bucket=bucket.name, Key=upload.key, UploadId=upload.id
            )
        except ClientError as error:
            if error_code(error) in _GONE:
                return False
            raise
    return True


def _size_bytes(bucket: Bucket, key: str, upload_id: str) -> int:
    request: dict[str, Any] = {"Bucket": bucket.name, "Key": key, "UploadId": upload_id}
    size_bytes = 0
    while True:
        with bucket.calling():
            try:
                page = bucket.client.list_parts(**request)
            except ClientError as error:
                if error_code(error) in _GONE:
                    return size_bytes
                raise
        size_bytes += sum(int(part["Size"]) for part in page.get("Parts", []))
        if not page.get("IsTruncated"):
            return size_bytes
        request["PartNumberMarker"] = page["NextPartNumberMarker"]
