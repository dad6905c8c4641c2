"""From the settings of this process to its store."""

from dataclasses import dataclass

from trtforge.settings import Settings
from trtforge.store import Store
from trtforge.store.client import S3Client, Wire, make_client


@dataclass(frozen=True)
class Elsewhere:
    """A second storage. What is None is as in the settings; with another endpoint or profile, the
    credentials are not: those come from boto3's own chain."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None


def client_of(settings: Settings, elsewhere: Elsewhere | None = None) -> S3Client:
    """The client that the settings describe.

    Raises:
        EndpointInvalidError, CaBundleError, ProfileUnknownError: of `make_client`.
    """
    other = elsewhere or Elsewhere()
    own = other.endpoint_url is None and other.profile is None
    key = settings.s3_access_key_id if own else None
    return make_client(
        endpoint_url=other.endpoint_url or settings.s3_endpoint_url,
        region=other.region or (settings.s3_region if own else None),
        access_key_id=key.get_secret_value() if key else None,
        secret_access_key=settings.s3_secret_access_key if own else None,
        checksums=settings.s3_checksums,
        wire=Wire(
            addressing=settings.s3_addressing,
            # A key of KMS belongs to one account.
            encryption=settings.s3_encryption if own else None,
            kms_key_id=settings.s3_kms_key_id if own else None,
            proxy_url=settings.s3_proxy_url,
            ca_bundle=settings.s3_ca_bundle,
            profile=other.profile or (settings.s3_profile if own else None),
            connect_timeout_s=settings.s3_connect_timeout_s,
            read_timeout_s=settings.s3_read_timeout_s,
            max_attempts=settings.s3_max_attempts,
        ),
    )


def store_of(settings: Settings) -> Store:
    """The store, with its cache below `TRTFORGE_HOME`.

    Raises:
        StorageNotConfiguredError: Nothing says where it is.
    """
    bucket = settings.require_bucket()
    cache, patience_s = settings.home / "cache", settings.s3_patience_s
    return Store(client_of(settings), bucket, cache, patience_s=patience_s)


def store_elsewhere(settings: Settings, bucket: str, elsewhere: Elsewhere) -> Store:
    """A second store, which shares this one's cache: blobs are the same everywhere."""
    client, cache = client_of(settings, elsewhere), settings.home / "cache"
    return Store(client, bucket, cache, patience_s=settings.s3_patience_s)
