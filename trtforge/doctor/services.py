"""The object storage and the Prefect server that the settings name."""

import time
import urllib.error
import urllib.request

from trtforge.doctor.findings import Finding, without_credentials
from trtforge.errors import InputError, TrtforgeError
from trtforge.settings import Settings
from trtforge.store.client import shown_endpoint
from trtforge.store.connect import store_of

_AREA = "services"
_CONNECT_S = 5.0
_READ_S = 10.0


def check_storage(settings: Settings) -> list[Finding]:
    """Whether the bucket answers, and means its conditional writes.

    An object is made for that, and removed.
    """
    name = "object storage"
    quick = settings.model_copy(
        update={
            "s3_connect_timeout_s": min(settings.s3_connect_timeout_s, _CONNECT_S),
            "s3_read_timeout_s": min(settings.s3_read_timeout_s, _READ_S),
            "s3_max_attempts": 1,
        }
    )
    where = f"{shown_endpoint(settings.s3_endpoint_url or 'AWS')}, bucket {settings.s3_bucket}"
    try:
        bucket = store_of(quick).bucket
        bucket.probe_conditional_writes()
    except InputError as error:
        return [Finding(_AREA, name, "missing", error.problem, error.remedy)]
    except TrtforgeError as error:
        return [Finding(_AREA, name, "missing", f"{where}: {error.problem}", error.remedy)]
    return [
        Finding(_AREA, name, "ok", where),
        Finding(_AREA, "conditional writes", "ok", "If-None-Match and If-Match are honoured"),
    ]


def check_prefect(settings: Settings) -> list[Finding]:
    """Whether the API says that it is healthy."""
    name, url = "Prefect server", settings.prefect_api_url
    if url is None:
        return [
            Finding(
                _AREA,
                name,
                "missing",
                "no Prefect server is configured",
                "Run `trtforge up`, or set TRTFORGE_PREFECT_API_URL",
            )
        ]
    shown = without_credentials(url)
    started = time.monotonic()
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_CONNECT_S) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return [
            Finding(
                _AREA,
                name,
                "missing",
                f"{shown} does not answer ({type(reason).__name__})",
                "Check the address and that the server runs (`trtforge up` starts the embedded "
                "one)",
            )
        ]
    if status == 200:
        detail = f"{shown}, in {(time.monotonic() - started) * 1000:.0f} ms"
        return [Finding(_AREA, name, "ok", detail)]
    return [
        Finding(
            _AREA,
            name,
            "missing",
            f"{shown}/health answers {status}",
            "The address must be that of the API: it ends in /api",
        )
    ]
