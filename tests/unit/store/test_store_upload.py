"""An upload sends what is missing, leaves others alone, and shows a blob only when it is right."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from trtforge.files import FileRef
from trtforge.progress import Progress
from trtforge.store import Store
from trtforge.store.client import make_client
from trtforge.store.layout import blob_key
from trtforge.store.transfer import FileChangedError
from trtforge.store.upload import UploadDisturbedError

MIB = 1 << 20
PART = 5 * MIB
WriteFile = Callable[[str, bytes], tuple[Path, FileRef]]
Hooks = Callable[[str, Callable[..., Any]], None]


@pytest.fixture
def sent(hooks: Hooks) -> list[int]:
    """The numbers of the parts that are sent, in any order."""
    numbers: list[int] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        numbers.append(params["PartNumber"])

    hooks("before-parameter-build.s3.UploadPart", note)
    return numbers


@pytest.fixture
def begin(s3: Any) -> Callable[..., str]:
    """Begins an upload of a blob, as a process that died did, with some of its parts."""

    def begin_one(ref: FileRef, parts: dict[int, bytes]) -> str:
        about = {"Bucket": s3.bucket, "Key": blob_key(ref.sha256)}
        made = s3.client.create_multipart_upload(**about, Metadata={"sha256": ref.sha256})
        upload_id: str = made["UploadId"]
        for number, data in parts.items():
            s3.client.upload_part(**about, UploadId=upload_id, PartNumber=number, Body=data)
        return upload_id

    return begin_one


def content(s3: Any, ref: FileRef) -> bytes:
    data: bytes = s3.client.get_object(Bucket=s3.bucket, Key=blob_key(ref.sha256))["Body"].read()
    return data


def unfinished(s3: Any) -> set[str]:
    listed = s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", [])
    return {upload["UploadId"] for upload in listed}


def abort(s3: Any, ref: FileRef, upload_id: str) -> None:
    s3.client.abort_multipart_upload(Bucket=s3.bucket, Key=blob_key(ref.sha256), UploadId=upload_id)


def test_parts_that_are_there_are_not_sent_again(
    store: Store, s3: Any, write_file: WriteFile, sent: list[int], begin: Callable[..., str]
) -> None:
    data = os.urandom(17 * MIB)
    path, ref = write_file("engine", data)
    begin(ref, {1: data[:PART], 4: data[3 * PART :]})
    seen: list[Progress] = []
    assert store.put_file(path, ref, seen.append)
    assert sorted(sent) == [2, 3]
    assert content(s3, ref) == data
    assert seen[-1].done == len(data)
    assert unfinished(s3) == set()


def test_parts_with_other_bytes_are_sent_again(
    store: Store, s3: Any, write_file: WriteFile, sent: list[int], begin: Callable[..., str]
) -> None:
    data = os.urandom(17 * MIB)
    path, ref = write_file("engine", data)
    begin(ref, {1: data[:PART], 2: os.urandom(PART)})
    store.put_file(path, ref)
    assert sorted(sent) == [2, 3, 4]
    assert content(s3, ref) == data


def test_of_several_unfinished_uploads_the_one_with_most_of_the_file_is_taken(
    store: Store, s3: Any, write_file: WriteFile, sent: list[int], begin: Callable[..., str]
) -> None:
    data = os.urandom(17 * MIB)
    path, ref = write_file("engine", data)
    others = {
        begin(ref, {1: data[:PART]}),
        # Cut up differently.
        begin(ref, {1: data[: PART + MIB], 2: data[PART + MIB : 2 * PART + 2 * MIB]}),
        begin(ref, {}),
    }
    begin(ref, {2: data[PART : 2 * PART], 3: data[2 * PART : 3 * PART]})
    store.put_file(path, ref)
    assert sorted(sent) == [1, 4]
    assert content(s3, ref) == data
    assert unfinished(s3) == others


def test_a_changed_file_spoils_no_upload_of_somebody_else(
    store: Store, s3: Any, write_file: WriteFile, sent: list[int], begin: Callable[..., str]
) -> None:
    data = os.urandom(17 * MIB)
    path, ref = write_file("engine", data)
    theirs = begin(ref, {1: data[:PART]})
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FileChangedError):
        store.put_file(path, ref)
    assert unfinished(s3) == {theirs}
    path.write_bytes(data)
    sent.clear()
    store.put_file(path, ref)
    assert 1 not in sent
    assert 4 in sent
    assert content(s3, ref) == data


def test_an_upload_that_vanishes_is_begun_anew(
    store: Store, s3: Any, write_file: WriteFile, hooks: Hooks
) -> None:
    data = os.urandom(17 * MIB)
    path, ref = write_file("engine", data)
    vanished: list[str] = []

    def vanish(params: dict[str, Any], **_: Any) -> None:
        if not vanished:
            vanished.append(params["UploadId"])
            abort(s3, ref, params["UploadId"])

    hooks("before-parameter-build.s3.UploadPart", vanish)
    seen: list[Progress] = []
    assert store.put_file(path, ref, seen.append)
    assert vanished
    assert content(s3, ref) == data
    assert seen[-1].done == len(data)


def test_uploads_that_vanish_every_time_are_reported(
    store: Store, s3: Any, write_file: WriteFile, hooks: Hooks
) -> None:
    path, ref = write_file("engine", os.urandom(12 * MIB))

    def vanish(params: dict[str, Any], **_: Any) -> None:
        abort(s3, ref, params["UploadId"])

    hooks("before-parameter-build.s3.CompleteMultipartUpload", vanish)
    with pytest.raises(UploadDisturbedError, match="aborts multipart uploads"):
        store.put_file(path, ref)
    assert "Contents" not in s3.client.list_objects_v2(Bucket=s3.bucket)


def test_a_blob_that_somebody_else_finished_meanwhile_is_left_alone(
    store: Store, s3: Any, write_file: WriteFile, hooks: Hooks
) -> None:
    data = os.urandom(12 * MIB)
    path, ref = write_file("engine", data)
    finished: list[Any] = []

    def finish(**_: Any) -> None:
        if not finished:
            finished.append(
                s3.client.put_object(
                    Bucket=s3.bucket,
                    Key=blob_key(ref.sha256),
                    Body=data,
                    Metadata={"sha256": ref.sha256},
                )
            )

    hooks("before-parameter-build.s3.UploadPart", finish)
    store.put_file(path, ref)
    head = s3.client.head_object(Bucket=s3.bucket, Key=blob_key(ref.sha256))
    assert head["ETag"] == finished[0]["ETag"]
    assert unfinished(s3) == set()


@pytest.mark.parametrize("size_bytes", [MIB, 12 * MIB])
def test_services_without_the_newer_checksums_get_an_md5(
    s3: Any,
    write_file: WriteFile,
    tmp_path: Path,
    begin: Callable[..., str],
    size_bytes: int,
) -> None:
    client = make_client(
        endpoint_url=s3.endpoint_url,
        access_key_id=s3.access_key_id,
        secret_access_key=SecretStr(s3.secret_access_key),
        checksums="when_required",
    )
    headers: list[dict[str, str]] = []
    for call in ("PutObject", "UploadPart"):
        client.meta.events.register(
            f"before-send.s3.{call}", lambda request, **_: headers.append(dict(request.headers))
        )
    store = Store(client, s3.bucket, tmp_path / "cache", part_bytes=PART)
    data = os.urandom(size_bytes)
    path, ref = write_file("engine", data)
    if size_bytes > PART:
        begin(ref, {1: data[:PART]})
    assert store.put_file(path, ref)
    assert content(s3, ref) == data
    assert headers
    for sent in headers:
        names = {name.lower() for name in sent}
        assert "content-md5" in names
        assert not any(name.startswith("x-amz-checksum") for name in names)


def test_blobs_that_are_there_are_not_even_read(
    store: Store, make_files: Callable[..., tuple[Path, list[FileRef]]]
) -> None:
    directory, files = make_files(engine=os.urandom(6 * MIB), config=b"{}", new=b"new")
    store.put_files(directory, files)
    # Same sizes, other bytes: a digest that is in the store needs nothing of the file.
    for name, data in (("engine", bytes(6 * MIB)), ("config", b"[]")):
        (directory / name).write_bytes(data)
    summary = store.put_files(directory, files)
    assert (summary.uploaded_files, summary.skipped_files) == (0, 3)
