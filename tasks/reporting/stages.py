"""What a task shows while its stage runs: log lines and a progress artifact in the Prefect UI."""

import contextvars
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run, task_run

from tasks.reporting.artifacts import show_log
from trtforge import run_log, telemetry
from trtforge.progress import Progress, StageEvent, listening
from trtforge.redaction import redact, redacted_errors

_UPDATE_EVERY_S = 2.0
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextmanager
def reported(stage: str, *, engine_id: str | None = None) -> Iterator[None]:
    """Show the events of `stage` in the task run's log, and its progress as an artifact.

    Args:
        engine_id: Of the engine that the stage is about, where it is known.
    """
    run_log.install()
    with (
        run_log.within(
            run_id=flow_run.id, task_run_id=task_run.id, stage=stage, engine_id=engine_id
        ),
        telemetry.span(
            f"stage {stage}", **{"trtforge.stage": stage, "trtforge.engine_id": engine_id}
        ),
        # Innermost, so that the span and Prefect are told the clean exception.
        redacted_errors(),
        _shown(stage, get_run_logger()),
    ):
        yield


@contextmanager
def _shown(stage: str, logger: Log) -> Iterator[None]:
    latest: list[Progress] = []
    ended = threading.Event()
    starting = threading.Lock()

    def listen(event: StageEvent) -> None:
        if event.stage != stage:
            return
        seconds = event.seconds or 0.0
        if event.progress is not None:
            latest[:] = [event.progress]
            with starting:
                if updater.ident is None:
                    updater.start()
        elif event.kind == "hit":
            logger.info("%s: found in the store (%s)", stage, event.message)
            telemetry.record_stage(stage, seconds, "hit")
            _annotate(event, hit=True)
        elif event.kind == "done":
            if latest:
                # What counts no steps ends at 100 %, too.
                latest[:] = [replace(latest[0], done=1, total=1)]
            logger.info("%s: done in %.1f s (%s)", stage, seconds, event.message)
            telemetry.record_stage(stage, seconds, "made")
            _annotate(event, hit=False)
        elif event.kind == "failed":
            telemetry.record_stage(stage, seconds, "failed")
        elif event.kind == "log":
            show_log(stage, event.message, where=event.facts.get("log", ""))

    # Progress arrives in the threads that make it; artifacts must be written in the task's context.
    context = contextvars.copy_context()
    updater = threading.Thread(
        target=lambda: context.run(_update, stage, latest, ended, logger), daemon=True
    )
    try:
        with listening(listen):
            yield
    finally:
        ended.set()
        # A stage that was found in the store has no progress to show.
        if updater.ident is not None:
            updater.join()


def _annotate(event: StageEvent, *, hit: bool) -> None:
    told: dict[str, telemetry.Attribute] = {
        "trtforge.hit": hit,
        "trtforge.detail": event.message,
    }
    telemetry.annotate(**told)


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
            about = redact(shown)
            try:
                if artifact_id is None:
                    artifact_id = cast(
                        UUID,
                        create_progress_artifact(
                            progress=percent, key=f"{stage}-progress", description=about
                        ),
                    )
                else:
                    update_progress_artifact(
                        artifact_id=artifact_id, progress=percent, description=about
                    )
            except Exception as error:  # a picture of the work must never end the work
                logger.debug("progress of %s was not shown: %s", stage, error)
        if last_time:
            return
