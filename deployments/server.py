"""The Prefect API: reads at once, writes only when they are meant, refusals as errors of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from deployments.errors import (
    ServerLoginError,
    ServerNotConfiguredError,
    ServerRefusedError,
    ServerUnreachableError,
)
from trtforge.prefect_login import REFUSALS, refused_login, without_credentials
from trtforge.redaction import redact

_PAGE = 200
# A person waits: the eight minutes that a run is patient for are too long here.
_RETRIES = 2


class Server:
    """A Prefect server.

    Args:
        client: Prefect's synchronous client.
        dry_run: Writes are not sent.
    """

    def __init__(self, client: Any, *, dry_run: bool) -> None:
        self._client = client
        self._dry_run = dry_run

    def read(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a request that changes nothing."""
        return self._send("the server", method, path, body).json()

    def pages(self, path: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Everything that a `…/filter` route finds."""
        found: list[dict[str, Any]] = []
        while True:
            window = {"limit": _PAGE, "offset": len(found)}
            page = self.read("POST", path, {**(body or {}), **window})
            found += page
            if len(page) < _PAGE:
                return found

    def write(self, what: str, method: str, path: str, body: Any = None) -> Any:
        """The answer to a request that changes `what`; None for a dry run, or without content."""
        if self._dry_run:
            return None
        answer = self._send(what, method, path, body)
        return answer.json() if answer.content else None

    def _send(self, what: str, method: str, path: str, body: Any) -> httpx.Response:
        try:
            answer: httpx.Response = self._client.request(method, path, json=body)
        except httpx.HTTPStatusError as error:
            raise _refusal(what, error.response) from error
        except httpx.HTTPError as error:
            raise _unreachable(str(error)) from error
        return answer


@contextmanager
def connected(*, dry_run: bool) -> Iterator[Server]:
    """The server that Prefect's settings of this process name.

    Raises:
        ServerNotConfiguredError: They name none.
        ServerUnreachableError: It does not answer.
        ServerLoginError: It does not accept the login.
    """
    if not PREFECT_API_URL.value():
        raise ServerNotConfiguredError(
            "no Prefect server is configured",
            field="PREFECT_API_URL",
            value=None,
            remedy="Run `trtforge up`, or set it (and PREFECT_API_AUTH_STRING)",
        )
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: _RETRIES}):
        try:
            with get_client(sync_client=True) as client:
                yield Server(client, dry_run=dry_run)
        except httpx.HTTPStatusError as error:  # of the CSRF token, for one
            if error.response.status_code in REFUSALS:
                raise _no_login(error.response.status_code) from error
            raise _unreachable(str(error)) from error
        except httpx.HTTPError as error:
            raise _unreachable(str(error)) from error


def _refusal(what: str, answer: httpx.Response) -> ServerRefusedError | ServerLoginError:
    if answer.status_code in REFUSALS:
        return _no_login(answer.status_code)
    try:
        detail = answer.json()
        detail = detail.get("detail") or detail.get("exception_detail") or detail
    except ValueError:
        detail = answer.text
    return ServerRefusedError(
        f"the Prefect server refused it, HTTP {answer.status_code} "
        f"({redact(' '.join(str(detail).split()))[:500]})",
        field="change",
        value=what,
        remedy="Correct the file, and run `trtforge deploy` again: what is done stays done",
    )


def _unreachable(problem: str) -> ServerUnreachableError:
    return ServerUnreachableError(
        f"the Prefect server does not answer ({' '.join(problem.split()) or 'no connection'})",
        field="PREFECT_API_URL",
        value=without_credentials(str(PREFECT_API_URL.value())),
        remedy="Start it with `trtforge up`, or correct PREFECT_API_URL",
    )


def _no_login(status: int) -> ServerLoginError:
    given = bool(PREFECT_API_AUTH_STRING.value())
    return ServerLoginError(
        refused_login(str(PREFECT_API_URL.value()), status, given=given),
        field="PREFECT_API_AUTH_STRING",
        value="***" if given else None,
        remedy="Set it (or TRTFORGE_PREFECT_AUTH) to user:password of that server; the embedded "
        "one's is prefect_auth in credentials.json of its home",
    )
