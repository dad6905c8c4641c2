"""huggingface_hub, set up for a worker: bounded waiting, no telemetry, no bars, explicit token.

How long a dead network can hold a call up: connecting takes at most 5 s and an answer at most 10 s
(`HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` may lower, not raise, that). Resolving tries
once: 10 s. In the middle of a download huggingface_hub itself tries again, 5 times without new
bytes (about 40 s) or, between two files, 6 times with 23 s of pauses (about one minute when
nothing answers, one and a half when a server accepts and stays silent).
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import httpx2
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils.tqdm import disable_progress_bars
from pydantic import SecretStr

from trtforge.sources.hub_errors import HubAccess, explain, token_malformed
from trtforge.sources.uri import HubSource

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_setup_lock = Lock()
_is_set_up = False


def connect(
    source: HubSource, token: SecretStr | None, endpoint: str | None
) -> tuple[HfApi, HubAccess]:
    """The client for one source. Nothing is sent yet.

    Args:
        token: Falls back to HF_TOKEN. A token that `hf auth login` stored is not used: which
            account a worker acts for must be visible in its configuration.
        endpoint: Falls back to HF_ENDPOINT, then to https://huggingface.co.

    Raises:
        HubTokenRejectedError: The token could not be sent at all.
    """
    _set_up()
    secret = (token.get_secret_value() if token else os.environ.get("HF_TOKEN", "")).strip()
    address = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    access = HubAccess(source, address, with_token=bool(secret))
    if secret and not _TOKEN.fullmatch(secret):
        # The HTTP client would quote the header, token included, in its own error.
        raise token_malformed(access)
    return HfApi(endpoint=address, token=secret or False, library_name="trtforge"), access


@contextmanager
def explained(access: HubAccess) -> Iterator[None]:
    """Turn errors of huggingface_hub in the block into ours.

    The original is kept out of tracebacks: it holds the request, and with it the token.
    """
    try:
        yield
    except Exception as error:
        ours = explain(error, access)
        if ours is None:
            raise
        raise ours from None


def _set_up() -> None:
    # These settings belong to the process, as the HTTP session of huggingface_hub does.
    global _is_set_up
    with _setup_lock:
        if _is_set_up:
            return
        constants.HF_HUB_DISABLE_TELEMETRY = True
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            disable_progress_bars()
        # Its warnings quote the signed addresses that downloads are redirected to.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        set_client_factory(_new_session)
        _is_set_up = True


def _new_session() -> httpx2.Client:
    return httpx2.Client(
        follow_redirects=True,
        timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        event_hooks={"request": [_bound]},
    )


def _bound(request: httpx2.Request) -> None:
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    # huggingface_hub passes its own timeouts, None and 60 s among them.
    asked = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        "connect": min(asked.get("connect") or CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S),
        "read": min(asked.get("read") or ANSWER_TIMEOUT_S, ANSWER_TIMEOUT_S),
        "write": min(asked.get("write") or ANSWER_TIMEOUT_S, ANSWER_TIMEOUT_S),
        # Waiting for a free connection of the pool is not a matter of the network.
        "pool": None,
    }
