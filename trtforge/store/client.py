"""The S3 client: how it is made, and how its failures read to a person."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError
from pydantic import SecretStr
from s3transfer.exceptions import RetriesExceededError

from trtforge.errors import InputError, ServiceError

S3Client: TypeAlias = Any
"""boto3 makes its clients' classes at run time; there is none to name."""

Checksums = Literal["when_supported", "when_required"]

Addressing = Literal["auto", "path", "virtual"]
Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]

_POOL_CONNECTIONS = 32
_ENCRYPTED_CALLS = ("PutObject", "CopyObject", "CreateMultipartUpload")
_ACCESS_CODES = {
    "401",
    "403",
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}


class EndpointInvalidError(InputError):
    """The address of the object storage is not a URL."""


class CaBundleError(InputError):
    """The file of certificates to trust cannot be read."""


class ProfileUnknownError(InputError):
    """The AWS configuration files have no such profile."""


class BucketNameError(InputError):
    """The name of the bucket is not one that S3 allows."""


class StoreUnreachableError(ServiceError):
    """Nothing answers at the endpoint, or the connection broke too often."""


class StoreAccessError(ServiceError):
    """The endpoint refuses the credentials, or they do not allow the request."""


class BucketMissingError(ServiceError):
    """The bucket does not exist."""


class StoreFailedError(ServiceError):
    """The endpoint answered with an error that is none of the above."""


@dataclass(frozen=True)
class Wire:
    """How to speak to one S3 service; the defaults suit most.

    Attributes:
        addressing: `path` (http://host/bucket) or `virtual` (http://bucket.host); `auto` is
            `virtual` for AWS and `path` for endpoints, which rarely have a DNS name per bucket.
        encryption: Server-side encryption of every object written; None is the bucket's default.
        kms_key_id: With `aws:kms` and `aws:kms:dsse`; None is the account's own key.
        proxy_url: HTTP proxy; None is what HTTP_PROXY and HTTPS_PROXY say.
        ca_bundle: File of certificates to trust instead of the system's.
        profile: Section of the AWS configuration files to take credentials and region from.
        connect_timeout_s, read_timeout_s: Of one try.
        max_attempts: Tries of one request in all, with the waits of boto3's `standard` mode.
    """

    addressing: Addressing = "auto"
    encryption: Encryption | None = None
    kms_key_id: str | None = None
    proxy_url: str | None = None
    ca_bundle: Path | None = None
    profile: str | None = None
    connect_timeout_s: float = 10
    read_timeout_s: float = 60
    max_attempts: int = 5


def make_client(
    *,
    endpoint_url: str | None,
    region: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: SecretStr | None = None,
    checksums: Checksums = "when_supported",
    max_attempts: int | None = None,
    wire: Wire | None = None,
) -> S3Client:
    """Make the boto3 client that all of the store uses; safe to share between threads.

    Args:
        endpoint_url: The address of the service; None for AWS itself.
        access_key_id: With `secret_access_key`; both None for boto3's own chain of providers.
        checksums: `when_supported` sends a CRC with every request, as boto3 does by default.
            `when_required` is for services that do not know those headers (older Ceph, some
            gateways; boto3 issues 4392 and 4400). Blobs are verified by SHA-256 either way.
        max_attempts: Instead of that of `wire`.
        wire: See there.

    Raises:
        EndpointInvalidError: The endpoint is not a URL.
        CaBundleError: There is no such file.
        ProfileUnknownError: There is no such profile.
    """
    wire = wire or Wire()
    style: Addressing = wire.addressing
    if style == "auto" and endpoint_url:
        style = "path"
    config = Config(
        retries={"mode": "standard", "total_max_attempts": max_attempts or wire.max_attempts},
        connect_timeout=wire.connect_timeout_s,
        read_timeout=wire.read_timeout_s,
        max_pool_connections=_POOL_CONNECTIONS,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        proxies={"http": wire.proxy_url, "https": wire.proxy_url} if wire.proxy_url else None,
        s3={"addressing_style": style},
    )
    try:
        # A session of its own: boto3's default session must not be used from several threads.
        session = boto3.session.Session(profile_name=wire.profile)
        client: S3Client = session.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region or session.region_name or "us-east-1",
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key.get_secret_value()
            if secret_access_key
            else None,
            verify=str(_readable(wire.ca_bundle)) if wire.ca_bundle else None,
            config=config,
        )
    except ValueError as error:
        raise EndpointInvalidError(
            "this is not the address of a service",
            field="endpoint_url",
            value=shown_endpoint(endpoint_url or ""),
            remedy="Write it with its scheme and port, such as http://127.0.0.1:8333",
        ) from error
    except ProfileNotFound as error:
        raise ProfileUnknownError(
            "the AWS configuration files have no such profile",
            field="profile",
            value=wire.profile,
            remedy="Correct the name, or add it to ~/.aws/config or ~/.aws/credentials",
        ) from error
    except PartialCredentialsError as error:
        raise _access_error(shown_endpoint(endpoint_url or "AWS"), "half of them") from error
    _encrypt_all(client, wire)
    return client


@contextmanager
def translated(endpoint_url: str, bucket: str) -> Iterator[None]:
    """Turn what boto3 raises inside the block into the errors of this module.

    Messages name the endpoint, the bucket and the service's error code. They never repeat the
    service's own message, which may quote an access key.
    """
    endpoint = shown_endpoint(endpoint_url)
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        if code == "NoSuchBucket":
            raise bucket_missing(endpoint, bucket) from error
        if code in _ACCESS_CODES:
            raise _access_error(endpoint, f"{code} for bucket {bucket!r}") from error
        raise StoreFailedError(
            f"{error.operation_name} in bucket {bucket!r} failed with {code}",
            field="endpoint_url",
            value=endpoint,
            remedy="Look at the log of the object storage, then start the same run again",
        ) from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise _access_error(endpoint, "no complete pair of keys was found") from error
    except ParamValidationError as error:
        raise BucketNameError(
            "this is not a name that S3 allows for a bucket",
            field="bucket",
            value=bucket,
            remedy="Use 3 to 63 lower-case letters, digits, '-' and '.'",
        ) from error
    except (BotoCoreError, ResponseParserError, RetriesExceededError) as error:
        raise StoreUnreachableError(
            f"no answer from the object storage ({type(error).__name__})",
            field="endpoint_url",
            value=endpoint,
            remedy="Check the address, that the service runs (`trtforge up` starts the embedded "
            f"one) and that this machine may reach it; the bucket asked for is {bucket!r}",
        ) from error


def error_code(error: ClientError) -> str:
    """The service's short name for what went wrong, or the HTTP status where it gave no name."""
    return error.response.get("Error", {}).get("Code", "an unnamed error")


def bucket_missing(endpoint: str, bucket: str) -> BucketMissingError:
    """The error for a bucket that is not there."""
    return BucketMissingError(
        f"there is no such bucket at {shown_endpoint(endpoint)}",
        field="bucket",
        value=bucket,
        remedy="Create it, or correct the name",
    )


def shown_endpoint(endpoint_url: str) -> str:
    """The address without user name and password, should somebody have written them into it."""
    parts = urlsplit(endpoint_url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _access_error(endpoint: str, detail: str) -> StoreAccessError:
    return StoreAccessError(
        f"the object storage does not accept the credentials ({detail})",
        field="endpoint_url",
        value=endpoint,
        remedy="Check the access key, the secret key, what they are allowed to do, and this "
        "machine's clock",
    )


def _encrypt_all(client: S3Client, wire: Wire) -> None:
    """Add the encryption to every request that writes, whoever of the store sends it.

    boto3 asks its listeners for more parameters before it checks and signs a request.
    """
    if wire.encryption is None:
        return
    extra: dict[str, str] = {"ServerSideEncryption": wire.encryption}
    if wire.kms_key_id:
        extra["SSEKMSKeyId"] = wire.kms_key_id

    def add(params: dict[str, Any], **_: Any) -> dict[str, Any]:
        return params | extra

    for call in _ENCRYPTED_CALLS:
        client.meta.events.register(f"provide-client-params.s3.{call}", add)


def _readable(ca_bundle: Path) -> Path:
    if not ca_bundle.is_file():
        raise CaBundleError(
            "there is no such file",
            field="s3_ca_bundle",
            value=str(ca_bundle),
            remedy="Name a file of certificates in PEM form",
        )
    return ca_bundle
