"""Where weights come from: the Hub, a directory, S3. The same bytes give the same content digest.

`resolve(parse_source(text))` says what would be fetched, `fetch` fetches and hashes it; the digest
is `trtforge.files.files_digest` of what `fetch` returns.
"""

from trtforge.sources.fetching import fetch, resolve
from trtforge.sources.hub_errors import (
    HubDownloadDamagedError,
    HubForbiddenError,
    HubOfflineError,
    HubRateLimitError,
    HubRepositoryNotFoundError,
    HubRevisionNotFoundError,
    HubTermsNotAcceptedError,
    HubTokenMissingError,
    HubTokenRejectedError,
    HubUnavailableError,
    HubUnreachableError,
)
from trtforge.sources.landing import NotEnoughDiskError
from trtforge.sources.local import (
    DestinationIsSourceError,
    SourceChangedError,
    SourceDirectoryError,
)
from trtforge.sources.resolved import ResolvedSource, SourceFile
from trtforge.sources.s3 import (
    BucketAccessError,
    BucketNotFoundError,
    BucketUnreachableError,
    ObjectChangedError,
)
from trtforge.sources.selection import (
    BrokenIndexError,
    MissingShardError,
    NoModelConfigError,
    NoWeightsError,
    PickledWeightsError,
    select_files,
)
from trtforge.sources.uri import (
    HubSource,
    LocalSource,
    MalformedSourceError,
    S3Source,
    Source,
    UnknownSchemeError,
    parse_source,
)

__all__ = [
    "BrokenIndexError",
    "BucketAccessError",
    "BucketNotFoundError",
    "BucketUnreachableError",
    "DestinationIsSourceError",
    "HubDownloadDamagedError",
    "HubForbiddenError",
    "HubOfflineError",
    "HubRateLimitError",
    "HubRepositoryNotFoundError",
    "HubRevisionNotFoundError",
    "HubSource",
    "HubTermsNotAcceptedError",
    "HubTokenMissingError",
    "HubTokenRejectedError",
    "HubUnavailableError",
    "HubUnreachableError",
    "LocalSource",
    "MalformedSourceError",
    "MissingShardError",
    "NoModelConfigError",
    "NoWeightsError",
    "NotEnoughDiskError",
    "ObjectChangedError",
    "PickledWeightsError",
    "ResolvedSource",
    "S3Source",
    "Source",
    "SourceChangedError",
    "SourceDirectoryError",
    "SourceFile",
    "UnknownSchemeError",
    "fetch",
    "parse_source",
    "resolve",
    "select_files",
]
