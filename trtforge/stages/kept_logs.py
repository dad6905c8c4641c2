"""The logs of a stage that failed, kept when its scratch directory goes."""

import shutil
from contextlib import suppress
from pathlib import Path

from trtforge.errors import TrtforgeError

_FOLDER = "logs"


def keep_logs(scratch: Path, error: TrtforgeError) -> list[Path]:
    """Move the logs in `scratch` beside it, and let `error` name the place they have then.

    They stay for a day at least: what is older goes with the leftovers of killed runs.

    Returns:
        The logs that were kept, where they are now.
    """
    logs = sorted(scratch.glob("*.log"))
    if not logs:
        return []
    kept = scratch.parent / _FOLDER / scratch.name
    # A log that cannot be kept must not hide why there is one.
    with suppress(OSError):
        kept.mkdir(parents=True, exist_ok=True)
        for log in logs:
            shutil.move(log, kept / log.name)
        for place in {str(scratch.absolute()), str(scratch)}:
            error.remedy = error.remedy.replace(place, str(kept.absolute()))
    return sorted(kept.glob("*.log"))
