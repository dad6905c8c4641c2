"""Waiting for a Prefect server that is away.

A client of Prefect's waits for a server that it has reached before (PREFECT_CLIENT_MAX_RETRIES). A
fresh one gives up at once, and most calls make a fresh one.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

# As long as the clients that have reached it once.
_PATIENCE_S = 500.0
_PAUSE_S = 3.0
_log = logging.getLogger("trtforge")
T = TypeVar("T")


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives, which may be repeated, once the Prefect server can be reached.

    Raises:
        httpx.TransportError: It could not for longer than eight minutes.
    """
    deadline = time.monotonic() + _PATIENCE_S
    told = False
    while True:
        try:
            return call()
        except httpx.TransportError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                _log.warning("waiting for the Prefect server: %s", error)
                told = True
        time.sleep(_PAUSE_S)
