"""The S3 client: how it is made, and how its failures read to a person."""

from collections.abc import Iterator
from contextlib import contextmanager
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
)
from pydantic import SecretStr
from s3transfer.exceptions import RetriesExceededError

from trtforge.errors import InputError, ServiceError

S3Client: TypeAlias = Any
"""boto3 makes its clients' classes at run time; there is none to name."""

Checksums = Literal["when_supported", "when_required"]

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_POOL_CONNECTIONS = 32
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


def make_client(
    *,
    endpoint_url: str | None,
    region: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: SecretStr | None = None,
    checksums: Checksums = "when_supported",
    max_attempts: int = 5,
) -> S3Client:
    """Make the boto3 client that all of the store uses; safe to share between threads.

    Args:
        endpoint_url: The address of the service; None for AWS itself.
        access_key_id: With `secret_access_key`; both None for boto3's own chain of providers.
        checksums: `when_supported` sends a CRC with every request, as boto3 does by default.
            `when_required` is for services that do not know those headers (older Ceph, some
            gateways; boto3 issues 4392 and 4400). Blobs are verified by SHA-256 either way.
        max_attempts: Tries of one request in all, with the waits of boto3's `standard` mode.

    Raises:
        EndpointInvalidError: The endpoint is not a URL.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=_POOL_CONNECTIONS,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        # Services other than AWS rarely have a DNS name per bucket.
        s3={"addressing_style": "path" if endpoint_url else "auto"},
    )
    try:
        # A session of its own: boto3's default session must not be used from several threads.
        client: S3Client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region or "us-east-1",
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key.get_secret_value()
            if secret_access_key
            else None,
            config=config,
        )
    except ValueError as error:
        raise EndpointInvalidError(
            "this is not the address of a service",
            field="endpoint_url",
            value=shown_endpoint(endpoint_url or ""),
            remedy="Write it with its scheme and port, such as http://127.0.0.1:8333",
        ) from error
    except PartialCredentialsError as error:
        raise _access_error(shown_endpoint(endpoint_url or "AWS"), "half of them") from error
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
    except (BotoCoreError, RetriesExceededError) as error:
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
