"""What a task shows while its stage runs: log lines and a progress artifact in the Prefect UI."""

import contextvars
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from trtforge.progress import Progress, StageEvent, listening

_UPDATE_EVERY_S = 2.0
_LOG_LINES = 200
_LOG_CHARACTERS = 50_000
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextmanager
def reported(stage: str) -> Iterator[None]:
    """Show the events of `stage` in the task run's log, and its progress as an artifact."""
    logger = get_run_logger()
    latest: list[Progress] = []
    ended = threading.Event()

    def listen(event: StageEvent) -> None:
        if event.stage != stage:
            return
        if event.progress is not None:
            latest[:] = [event.progress]
        elif event.kind == "hit":
            logger.info("%s: found in the store (%s)", stage, event.message)
        elif event.kind == "done":
            logger.info("%s: done in %.1f s (%s)", stage, event.seconds or 0.0, event.message)
        elif event.kind == "log":
            _show_log(stage, event.message, logger)

    # Progress arrives in the threads that make it; artifacts must be written in the task's context.
    context = contextvars.copy_context()
    updater = threading.Thread(
        target=lambda: context.run(_update, stage, latest, ended, logger), daemon=True
    )
    updater.start()
    try:
        with listening(listen):
            yield
    finally:
        ended.set()
        updater.join()


def _show_log(stage: str, log: str, logger: Log) -> None:
    """The end of a failed toolchain's log, where the person who sees the failure looks first."""
    end = "\n".join(log.splitlines()[-_LOG_LINES:])[-_LOG_CHARACTERS:]
    # Four backticks: logs quote markdown, too.
    try:
        create_markdown_artifact(
            key=f"{stage}-log",
            markdown=f"The last lines of the log:\n\n````text\n{end}\n````\n",
            description=f"Why {stage} failed, in the toolchain's own words",
        )
    except Exception as error:  # it must not hide why the stage failed
        logger.debug("the log of %s was not shown: %s", stage, error)


def _update(
    stage: str,
    latest: list[Progress],
    ended: threading.Event,
    logger: Log,
) -> None:
    artifact_id: UUID | None = None
    shown = ""
    while True:
        last_time = ended.wait(_UPDATE_EVERY_S)
        if latest:
            progress = latest[0]
            if progress.what != shown:
                shown = progress.what
                logger.info("%s: %s", stage, shown)
            percent = 100.0 * progress.done / progress.total if progress.total else 0.0
            try:
                if artifact_id is None:
                    artifact_id = cast(
                        UUID,
                        create_progress_artifact(
                            progress=percent, key=f"{stage}-progress", description=shown
                        ),
                    )
                else:
                    update_progress_artifact(
                        artifact_id=artifact_id, progress=percent, description=shown
                    )
            except Exception as error:  # a picture of the work must never end the work
                logger.debug("progress of %s was not shown: %s", stage, error)
        if last_time:
            return
