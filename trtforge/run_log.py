"""Log records that say which run, stage and engine they belong to.

`within` names them for everything logged in its block. `RunFilter`, for handlers, adds them to
the records as `run_id`, `stage` and `engine_id`, and to the text of trtforge's own records as a
prefix. `console_formatter` writes JSON lines where TRTFORGE_LOG_FORMAT is `json`.
"""

import contextvars
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from trtforge import redaction

FORMAT_VARIABLE = "TRTFORGE_LOG_FORMAT"

_OURS = "trtforge"
_SHORT_RUN, _SHORT_ENGINE = 8, 12


@dataclass(frozen=True)
class RunFields:
    """What the current work belongs to; None is not known, or not of any.

    Attributes:
        run_id: Id of the flow run.
        task_run_id: Id of the task run, so that Prefect files the record there.
        stage: Such as `compile`.
        engine_id: The whole id.
    """

    run_id: str | None = None
    task_run_id: str | None = None
    stage: str | None = None
    engine_id: str | None = None

    @property
    def prefix(self) -> str:
        """`[1f3c… compile engine 0a1b…] `, short enough for a line of a log."""
        parts = (
            self.run_id and self.run_id[:_SHORT_RUN],
            self.stage,
            self.engine_id and f"engine {self.engine_id[:_SHORT_ENGINE]}",
        )
        text = " ".join(part for part in parts if part)
        return f"[{text}] " if text else ""


_NOTHING = RunFields()
_current: contextvars.ContextVar[RunFields] = contextvars.ContextVar("run_fields", default=_NOTHING)
# For threads that the library starts, which have no context of their own.
_open: list[RunFields] = []


@contextmanager
def within(**fields: str | None) -> Iterator[RunFields]:
    """Log as part of a run, a stage, an engine; what is left out stays as it is around the block.

    Args:
        fields: Those of `RunFields`. None leaves the outer one.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    inner = replace(_current.get(), **given)
    token = _current.set(inner)
    _open.append(inner)
    try:
        yield inner
    finally:
        _open.remove(inner)
        _current.reset(token)


def current() -> RunFields:
    """Of this thread; of the only run of this process, where the thread knows of none."""
    mine = _current.get()
    if mine is not _NOTHING:
        return mine
    runs = tuple(_open)
    return runs[-1] if len({fields.run_id for fields in runs}) == 1 else _NOTHING


class RunFilter(logging.Filter):
    """Adds what `current` says to a record, once, however many handlers it goes through."""

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "plain_message"):
            return True
        fields = current()
        message = record.getMessage()
        extra = {
            "run_id": fields.run_id,
            "stage": fields.stage,
            "engine_id": fields.engine_id,
            "plain_message": message,
        }
        if record.name.partition(".")[0] == _OURS:
            record.msg, record.args = f"{fields.prefix}{message}", ()
            # Prefect asks its own context otherwise, which other threads do not have.
            if fields.run_id and not hasattr(record, "flow_run_id"):
                extra |= {"flow_run_id": fields.run_id, "task_run_id": fields.task_run_id}
        vars(record).update(extra)
        return True


class JsonLines(logging.Formatter):
    """One JSON object per record: time (UTC), level, logger, message, run, stage, engine, error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": getattr(record, "plain_message", None) or record.getMessage(),
        }
        names = ("run_id", "stage", "engine_id", "flow_name", "flow_run_name", "task_run_name")
        line |= {name: getattr(record, name, None) for name in names}
        # Prefect's own records carry their run under its own name.
        line["run_id"] = line["run_id"] or getattr(record, "flow_run_id", None)
        error = record.exc_text or (
            self.formatException(record.exc_info) if record.exc_info else None
        )
        line["error"] = error
        told = {name: value for name, value in line.items() if value is not None}
        return json.dumps(told, ensure_ascii=False, default=str)


def console_formatter(**text: Any) -> logging.Formatter:
    """The formatter of the console: JSON lines where asked for, else Prefect's with `text`."""
    if os.environ.get(FORMAT_VARIABLE, "").strip().lower() == "json":
        return JsonLines()
    from prefect.logging.formatters import PrefectFormatter

    return PrefectFormatter(**text)


def install() -> None:
    """Put this module's filter and the redaction on every handler of this process."""
    redaction.install()
    for handler in redaction.logging_handlers():
        if not any(isinstance(known, RunFilter) for known in handler.filters):
            handler.addFilter(RunFilter())
