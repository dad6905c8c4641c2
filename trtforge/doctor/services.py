"""The object storage and the Prefect server that the settings name."""

from trtforge.doctor.findings import Finding
from trtforge.errors import InputError, TrtforgeError
from trtforge.prefect_login import (
    PrefectUnreachableError,
    require_prefect,
    without_credentials,
)
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
    """Whether the API says that it is healthy, and lets us in."""
    name = "Prefect server"
    try:
        seconds = require_prefect(settings)
    except PrefectUnreachableError as error:
        return [Finding(_AREA, name, "missing", f"{error.value}: {error.problem}", error.remedy)]
    except TrtforgeError as error:
        return [Finding(_AREA, name, "missing", error.problem, error.remedy)]
    url = without_credentials(str(settings.prefect_api_url))
    return [Finding(_AREA, name, "ok", f"{url}, in {seconds * 1000:.0f} ms")]
