"""Whether a Prefect server answers, and whether it lets us in: two troubles with two remedies."""

import base64
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from trtforge.errors import ServiceError
from trtforge.settings import Settings, prefect_environment

_PATIENCE_S = 10.0
REFUSALS = (401, 403)


class PrefectUnreachableError(ServiceError):
    """The Prefect server does not answer, or not as one."""


class PrefectLoginError(ServiceError):
    """The Prefect server answers, and does not accept the login."""


def require_prefect(settings: Settings) -> float:
    """How long the server takes to answer, in seconds.

    Asked for its health, which everybody may know, and then for what only its users may. Prefect's
    own client would wait for minutes, and tell with a traceback.

    Raises:
        PrefectNotConfiguredError: No server is configured.
        PrefectUnreachableError: It does not answer, or is no Prefect server.
        PrefectLoginError: It does not accept the login, or asks for one and there is none.
    """
    url = prefect_environment(settings)["PREFECT_API_URL"].rstrip("/")
    started = time.monotonic()
    status = _status(f"{url}/health", url)
    seconds = time.monotonic() - started
    if status != 200:
        raise PrefectUnreachableError(
            f"this is not the API of a Prefect server: /health answers {status}",
            field="prefect_api_url",
            value=without_credentials(url),
            remedy="The address must be that of the API: it ends in /api",
        )
    status = _status(f"{url}/admin/version", url, settings.prefect_auth)
    if status in REFUSALS:
        given = settings.prefect_auth is not None
        raise PrefectLoginError(
            refused_login(url, status, given=given),
            field="prefect_auth",
            value="***" if given else None,
            remedy="Set TRTFORGE_PREFECT_AUTH (or PREFECT_API_AUTH_STRING) to user:password of "
            "that server; the embedded one's is prefect_auth in credentials.json of its home",
        )
    return seconds


def refused_login(url: str, status: int, *, given: bool) -> str:
    """What is wrong where a server answers with one of REFUSALS; `given`: a login was sent."""
    problem = "does not accept this login" if given else "asks for a login, and none is set"
    return f"the Prefect server {without_credentials(url)} answers, but {problem} (HTTP {status})"


def without_credentials(url: str) -> str:
    """The URL without user, password, query and fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _status(address: str, api_url: str, login: SecretStr | None = None) -> int:
    try:
        request = urllib.request.Request(address)
        if login is not None:
            token = base64.b64encode(login.get_secret_value().encode()).decode()
            # Not for whom a redirection leads to.
            request.add_unredirected_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise PrefectUnreachableError(
            f"no answer from the Prefect server ({type(reason).__name__})",
            field="prefect_api_url",
            value=without_credentials(api_url),
            remedy="Check the address and that the server runs (`trtforge up` starts the embedded "
            "one)",
        ) from error
