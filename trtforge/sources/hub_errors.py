"""What can go wrong with the Hub, one class per cause, and how its answers are told apart.

The Hub answers 401 for quite different things: a repository that does not exist (asked without a
token), a private one, a gated one (`X-Error-Code: GatedRepo`) and a wrong token; so the decision
needs to know whether a token was sent. Facts: `hf_raise_for_status` of huggingface_hub 2.4.
"""

from dataclasses import dataclass

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trtforge.errors import InputError, ServiceError, TrtforgeError
from trtforge.sources.uri import FIELD, HubSource

_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


class HubRepositoryNotFoundError(InputError):
    """No such repository, or one that this reader may not know of."""


class HubRevisionNotFoundError(InputError):
    """The repository has no such branch, tag or commit."""


class HubTermsNotAcceptedError(InputError):
    """The repository is gated and the token's account has not been let in."""


class HubTokenMissingError(InputError):
    """The repository is gated and no token was given."""


class HubTokenRejectedError(InputError):
    """The token itself is wrong: mistyped, expired or revoked."""


class HubForbiddenError(InputError):
    """The token is valid but may not read this repository."""


class HubRateLimitError(ServiceError):
    """Too many requests."""


class HubUnreachableError(ServiceError):
    """No connection: refused, name not found, timed out, or dropped too often."""


class HubUnavailableError(ServiceError):
    """The Hub answers, but with an error of its own."""


class HubOfflineError(ServiceError):
    """HF_HUB_OFFLINE forbids the network."""


class HubDownloadDamagedError(ServiceError):
    """A downloaded file is not the one the Hub described; it was removed."""


@dataclass(frozen=True)
class HubAccess:
    """Who asks whom for what: all that a message about the Hub may need. The token is not part."""

    source: HubSource
    endpoint: str
    with_token: bool

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{self.source.repo_id}"


def explain(error: Exception, access: HubAccess) -> TrtforgeError | None:
    """Our error for one of huggingface_hub or its HTTP client; None for anything unknown.

    No text of the answer is passed on except httpx's description of a failed connection.
    """
    if isinstance(error, LocalEntryNotFoundError):
        # huggingface_hub's "not in the local cache either" hides the real cause one level down.
        cause = error.__cause__
        return explain(cause, access) if isinstance(cause, Exception) else _unreachable(access, "")
    if isinstance(error, OfflineModeIsEnabled):
        return HubOfflineError(
            "HF_HUB_OFFLINE forbids asking the Hub",
            field=FIELD,
            value=access.source.uri,
            remedy="Unset HF_HUB_OFFLINE, or give the path of a directory with the weights",
        )
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error, access)
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)):
        return _unreachable(access, f" ({_one_line(error)})")
    if type(error).__module__.startswith("hf_xet"):
        return _unreachable(access, f" (Xet storage: {type(error).__name__})")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return _unreachable(access, " (a download ended early)")
    return None


def token_malformed(access: HubAccess) -> HubTokenRejectedError:
    """For a token that cannot even be sent."""
    return HubTokenRejectedError(
        "the token has characters that no token has, such as white space or quotes",
        field=FIELD,
        value=access.source.uri,
        remedy=f"Copy it again from {_TOKENS_PAGE} into HF_TOKEN",
    )


def not_the_hub(access: HubAccess) -> HubUnavailableError:
    """For an answer that is no model's description: a login page, a mirror's own format."""
    return HubUnavailableError(
        f"{access.endpoint} does not answer like a Hub",
        field=FIELD,
        value=access.source.uri,
        remedy="Check HF_ENDPOINT, and whether a proxy puts its own page in between",
    )


def _explain_status(error: HfHubHTTPError, access: HubAccess) -> TrtforgeError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return _gated(access)
    if status == 401 and access.with_token:
        return HubTokenRejectedError(
            "the Hub does not know the token",
            field=FIELD,
            value=access.source.uri,
            remedy=f"Check that it has not expired or been revoked at {_TOKENS_PAGE}, then set "
            "HF_TOKEN again",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubRevisionNotFoundError(
            f"the repository has no branch, tag or commit {access.source.revision!r}",
            field=FIELD,
            value=access.source.uri,
            remedy=f"Choose one from {access.page}/tree/main, or leave @ out for main",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return HubRepositoryNotFoundError(
            "the Hub has no such repository, or it is private",
            field=FIELD,
            value=access.source.uri,
            remedy="Check the spelling; if it is private, "
            + (
                "use a token of an account that can read it"
                if access.with_token
                else "set HF_TOKEN to a token that can read it"
            ),
        )
    if status == 403:
        return HubForbiddenError(
            "the Hub refuses to serve this repository",
            field=FIELD,
            value=access.source.uri,
            remedy=f"Open {access.page}; give a fine-grained token read access to it at "
            f"{_TOKENS_PAGE}, or choose another model if it has been disabled",
        )
    if isinstance(error, EntryNotFoundError) or status == 404:
        return HubRevisionNotFoundError(
            "the Hub lists a file that it does not have (404)",
            field=FIELD,
            value=access.source.uri,
            remedy=f"Look at {access.page}/tree/{access.source.revision} and try again or choose "
            "another revision",
        )
    if status == 429:
        return HubRateLimitError(
            "the Hub says there were too many requests (429)",
            field=FIELD,
            value=access.source.uri,
            remedy="Wait some minutes and run again; finished files are kept"
            + ("" if access.with_token else ". Setting HF_TOKEN raises the limit"),
        )
    return HubUnavailableError(
        f"{access.endpoint} answered with status {status}",
        field=FIELD,
        value=access.source.uri,
        remedy="Try again later; finished files are kept. See https://status.huggingface.co",
    )


def _gated(access: HubAccess) -> TrtforgeError:
    if access.with_token:
        return HubTermsNotAcceptedError(
            "the model is gated and the account of this token has not been given access",
            field=FIELD,
            value=access.source.uri,
            remedy=f"Accept the terms at {access.page} with the account the token belongs to; a "
            "fine-grained token also needs read access to gated repositories",
        )
    return HubTokenMissingError(
        "the model is gated and no token was given",
        field=FIELD,
        value=access.source.uri,
        remedy=f"Accept the terms at {access.page}, create a token at {_TOKENS_PAGE} and set "
        "HF_TOKEN",
    )


def _unreachable(access: HubAccess, detail: str) -> HubUnreachableError:
    return HubUnreachableError(
        f"{access.endpoint} cannot be reached{detail}",
        field=FIELD,
        value=access.source.uri,
        remedy="Check the network, the proxy and HF_ENDPOINT, then run again; finished files "
        "are kept",
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
