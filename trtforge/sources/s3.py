"""Weights from object storage: the objects directly below a prefix."""

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from trtforge.errors import InputError, ServiceError, TrtforgeError
from trtforge.sources.landing import Meter, require_free_space
from trtforge.sources.model_card import licence_of_card
from trtforge.sources.resolved import ResolvedSource, SourceFile
from trtforge.sources.selection import CARD, select_files
from trtforge.sources.uri import FIELD, S3Source

_PARALLEL_FILES = 4
_CHUNK_BYTES = 1 << 18
_TRIES_WITHOUT_PROGRESS = 4
_PAUSE_S = 1.0
# Connections that break in the middle of a body; botocore itself retries those that do not start.
_DROPPED = (
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    ConnectionError,
)


class BucketNotFoundError(InputError):
    """The storage has no such bucket."""


class BucketAccessError(InputError):
    """The credentials are missing, wrong, or may not read there."""


class ObjectChangedError(InputError):
    """An object was replaced or deleted after it was resolved, or arrived with other bytes."""


class BucketUnreachableError(ServiceError):
    """The object storage does not answer, or answers with an error of its own."""


def resolve_s3(source: S3Source, *, client: Any = None) -> ResolvedSource:
    """List the objects and choose the files.

    Args:
        client: A boto3 S3 client; by default one made from the environment's AWS settings.

    Raises:
        The classes of this module and of `trtforge.sources.selection`.
    """
    with _explained(source):
        client = client or _default_client()
        found = _list(client, source)
        names = select_files(found, lambda name: _read(client, source, name), source=source.uri)
        card = _read(client, source, CARD).decode(errors="replace") if CARD in found else ""
    return ResolvedSource(
        kind="s3",
        uri=source.uri,
        revision=None,
        files=tuple(found[name] for name in names),
        licence=licence_of_card(card),
    )


def download_s3(
    source: S3Source, files: Sequence[SourceFile], dest: Path, meter: Meter, *, client: Any = None
) -> None:
    """Download `files` into `dest`, each under a temporary name until it is whole.

    A dropped connection, or a process that was killed, is continued at the byte where it broke;
    every request insists on the object's ETag as it was resolved.

    Raises:
        NotEnoughDiskError, and the classes of this module.
    """
    _remove_outdated(dest, files)
    here_bytes = sum(_size_bytes(_partial(dest, file)) for file in files)
    require_free_space(dest, sum(file.size_bytes for file in files) - here_bytes)
    stop = Event()
    with _explained(source):
        client = client or _default_client()
        with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="s3") as pool:
            try:
                for _ in pool.map(lambda f: _download(client, source, f, dest, meter, stop), files):
                    pass
            except BaseException:
                # What has arrived stays, so there is nothing to wait for.
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


def changed(source: S3Source, names: Sequence[str]) -> ObjectChangedError:
    """For objects that are no longer what was resolved."""
    return ObjectChangedError(
        f"{', '.join(names)} changed while being read",
        field=FIELD,
        value=source.uri,
        remedy="Wait until whatever writes there has ended, then run again",
    )


def _default_client() -> Any:
    # botocore would wait 60 s for each of 5 tries to connect.
    patience = Config(
        connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3}
    )
    return boto3.client("s3", config=patience)


def _list(client: Any, source: S3Source) -> dict[str, SourceFile]:
    root = source.key("")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=source.bucket, Prefix=root, Delimiter="/"
    )
    found: dict[str, SourceFile] = {}
    for page in pages:
        for entry in page.get("Contents", ()):
            name = entry["Key"].removeprefix(root)
            modified_s = int(entry["LastModified"].timestamp())
            if name:
                found[name] = SourceFile(name, entry["Size"], f"s3:{modified_s}:{entry['ETag']}")
    return found


def _read(client: Any, source: S3Source, name: str) -> bytes:
    response = client.get_object(Bucket=source.bucket, Key=source.key(name))
    content: bytes = response["Body"].read()
    return content


def _download(
    client: Any, source: S3Source, file: SourceFile, dest: Path, meter: Meter, stop: Event
) -> None:
    partial = _partial(dest, file)
    meter.add(_size_bytes(partial))
    tries = 0
    while (start := _size_bytes(partial)) < file.size_bytes or not partial.exists():
        if stop.is_set():
            return
        try:
            _append(client, source, file, partial, meter, stop)
        except _DROPPED:
            tries = 0 if _size_bytes(partial) > start else tries + 1
            if tries >= _TRIES_WITHOUT_PROGRESS:
                raise
            time.sleep(_PAUSE_S)
    # The modification time, kept as it is in the bucket, is how a finished file is recognised.
    modified_s = int(file.fingerprint.split(":")[1])
    os.utime(partial, (modified_s, modified_s))
    partial.replace(dest / file.path)


def _append(
    client: Any, source: S3Source, file: SourceFile, partial: Path, meter: Meter, stop: Event
) -> None:
    start = _size_bytes(partial)
    etag = file.fingerprint.split(":", 2)[2]
    options = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = client.get_object(
            Bucket=source.bucket, Key=source.key(file.path), IfMatch=etag, **options
        )
    except ClientError as error:
        if _status(error) in (404, 412, 416):
            raise changed(source, [file.path]) from error
        raise
    with partial.open("ab") as stream:
        for chunk in response["Body"].iter_chunks(_CHUNK_BYTES):
            if stop.is_set():
                return
            stream.write(chunk)
            meter.add(len(chunk))


def _partial(dest: Path, file: SourceFile) -> Path:
    version = hashlib.sha256(file.fingerprint.encode()).hexdigest()[:16]
    return dest / f".{file.path}.{version}.partial"


def _remove_outdated(dest: Path, files: Sequence[SourceFile]) -> None:
    wanted = {_partial(dest, file): file.size_bytes for file in files}
    for path in dest.glob(".*.partial"):
        if path not in wanted or path.stat().st_size > wanted[path]:
            path.unlink()


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def _explained(source: S3Source) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _explain_answer(error, source) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise BucketAccessError(
            "there are no S3 credentials",
            field=FIELD,
            value=source.uri,
            remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the worker a role",
        ) from error
    except NoRegionError as error:
        raise BucketAccessError(
            "no S3 region is configured",
            field=FIELD,
            value=source.uri,
            remedy="Set AWS_DEFAULT_REGION",
        ) from error
    except (BotoCoreError, ConnectionError) as error:
        raise BucketUnreachableError(
            f"the object storage cannot be reached ({type(error).__name__})",
            field=FIELD,
            value=source.uri,
            remedy="Check the network and AWS_ENDPOINT_URL_S3, then run again; what has arrived "
            "is kept",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ETIMEDOUT, errno.EPIPE):
            raise
        raise BucketUnreachableError(
            "the connection to the object storage broke",
            field=FIELD,
            value=source.uri,
            remedy="Run again; what has arrived is kept",
        ) from error


def _explain_answer(error: ClientError, source: S3Source) -> TrtforgeError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = _status(error)
    if code == "NoSuchBucket":
        return BucketNotFoundError(
            f"there is no bucket {source.bucket!r}",
            field=FIELD,
            value=source.uri,
            remedy="Check the name and AWS_ENDPOINT_URL_S3",
        )
    if status in (401, 403):
        return BucketAccessError(
            f"the object storage refuses these credentials ({code or status})",
            field=FIELD,
            value=source.uri,
            remedy="Give them s3:ListBucket on the bucket and s3:GetObject on the prefix",
        )
    if status == 404:
        return changed(source, [code or "an object"])
    return BucketUnreachableError(
        f"the object storage answered {code or status}",
        field=FIELD,
        value=source.uri,
        remedy="Try again later; what has arrived is kept",
    )
