"""Which failures of the service pass by themselves, and how long they are waited for.

botocore repeats a request a few times within seconds. That does not bridge a service that is
started anew, and does nothing about a body that breaks off or arrives damaged.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from botocore.exceptions import (
    ChecksumError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from trtforge.store.client import error_code

PATIENCE_S = 60.0
"""How long a service may be away that has answered before."""

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
_PASSING = (
    ChecksumError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
)
_PASSING_CODES = {
    # Bytes were lost or changed on their way.
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    # Too much at once.
    "BandwidthLimitExceeded",
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def persist(
    attempt: Callable[[], _T], patience_s: float, stopped: threading.Event | None = None
) -> _T:
    """Call `attempt` until it succeeds; its last error is raised when patience is over.

    Args:
        patience_s: Counted from the first failure, without the retries of botocore itself.
        stopped: Set from another thread when the result is not wanted any more.
    """
    deadline_s = None
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except Exception as error:
            now_s = time.monotonic()
            deadline_s = deadline_s or now_s + patience_s
            if not passes(error) or now_s >= deadline_s:
                raise
            _log.warning("trying again: %s", type(error).__name__)
            pause_s = min(random.uniform(wait_s / 2, wait_s), deadline_s - now_s)
            if stopped is None:
                time.sleep(pause_s)
            elif stopped.wait(pause_s):
                raise
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def passes(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in _PASSING_STATUSES or error_code(error) in _PASSING_CODES
    if isinstance(error, SSLError):
        return "CERTIFICATE" not in str(error).upper()
    return isinstance(error, _PASSING)
