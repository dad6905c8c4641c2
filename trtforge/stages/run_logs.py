"""The toolchains' logs, kept with the run in the store for those who cannot reach this machine."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trtforge.errors import ServiceError
from trtforge.progress import StageEvent, announce
from trtforge.redaction import redact

if TYPE_CHECKING:
    from trtforge.store import Store

# More than any compiler was seen to write. What is longer loses its middle.
_MOST_BYTES = 16 << 20
_log = logging.getLogger("trtforge")


def share_logs(
    store: "Store", run_id: str | None, stage: str, logs: Sequence[Path], *, failed: bool
) -> tuple[str, ...]:
    """Keep logs below `runs/<run id>/logs/<stage>/`, without secrets, and announce each.

    Empty ones are left out, and so is what cannot be read or sent: a log tells why a stage failed,
    or how it went, and must not become the reason itself.

    Args:
        run_id: Of the flow run; None: there is none, and the logs are announced only.
        failed: Whether the stage did.

    Returns:
        Their addresses (`s3://…`), as far as they were kept.
    """
    kept = []
    for log in logs:
        with suppress(OSError):
            text = redact(_read(log))
            if not text.strip():
                continue
            where = ""
            if run_id:
                with suppress(ServiceError):
                    where = store.put_run_file(run_id, f"logs/{stage}/{log.name}", text.encode())
                    kept.append(where)
                    level = logging.ERROR if failed else logging.INFO
                    _log.log(level, "the log of stage %s is at %s", stage, where)
            announce(StageEvent(stage, "log", text, facts={"log": where} if where else {}))
    return tuple(kept)


def _read(log: Path) -> str:
    size_bytes = log.stat().st_size
    with log.open("rb") as file:
        if size_bytes <= _MOST_BYTES:
            return file.read().decode(errors="replace")
        half = _MOST_BYTES // 2
        # Whole lines only: half a secret would not be known for one.
        first = file.read(half).rpartition(b"\n")[0]
        file.seek(size_bytes - half)
        last = file.read().partition(b"\n")[2]
    left_out = size_bytes - len(first) - len(last)
    cut = f"\n… {left_out} bytes are left out here …\n"
    return first.decode(errors="replace") + cut + last.decode(errors="replace")
