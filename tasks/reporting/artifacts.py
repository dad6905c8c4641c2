"""The artifacts of a run, one stable key each, of limited size and without secrets.

They are pictures of the work: one that cannot be written is told in the log, and ends nothing.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from trtforge import artifacts
from trtforge.card_plots import with_plots
from trtforge.engines.memory import MemoryPlan
from trtforge.redaction import redact, redact_value
from trtforge.stages.history import History

_log = logging.getLogger("trtforge")


def show_plan(
    stages: Sequence[artifacts.Planned],
    source: str,
    *,
    model_bytes: int,
    backend: str | None = None,
    gpu: str | None = None,
    history: History | None = None,
) -> None:
    """The artifact `plan`; see `trtforge.artifacts.plan_rows`."""
    rows, told = artifacts.plan_rows(
        stages, model_bytes=model_bytes, backend=backend, gpu=gpu, history=history
    )
    show_table("plan", rows, f"Plan for {source}: {told}")


def show_memory(plan: MemoryPlan | None) -> None:
    """The artifact `memory-preflight`: what the engine needs and what there is; None: nothing."""
    if plan is not None:
        show_table(
            "memory-preflight",
            artifacts.memory_rows(plan),
            "Needed and available, before a GPU is taken",
        )


def show_card(
    card: str,
    location: str,
    *,
    benchmark: Mapping[str, Any] | None = None,
    token_s: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """The artifact `engine-card`: the card, with its plots.

    Args:
        card: Of `trtforge.card.engine_card`.
        location: `s3://…` of the manifest.
        benchmark: Of the manifest.
        token_s: As `trtforge.card_plots.token_times_of` reads them.
    """
    # Before the plots are in it: they are too long to be searched, and hold no text of others.
    text = redact(card)
    try:
        text = with_plots(text, benchmark, token_s)
    except Exception as error:
        _log.warning("the engine card has no plots: %s", error)
    _show("engine-card", lambda key: _markdown(key, text, location))


def show_log(stage: str, log: str, where: str = "") -> None:
    """The artifact `<stage>-log`: a summary of a toolchain's log, and the address of all of it."""
    summary = artifacts.log_summary(redact(log), where=where)
    about = f"What the toolchain of {stage} had to say"
    _show(f"{stage}-log", lambda key: _markdown(key, summary, about))


def show_markdown(key: str, markdown: str, description: str = "") -> None:
    """An artifact of any text."""
    _show(key, lambda clean: _markdown(clean, redact(markdown), description))


def show_table(key: str, rows: Sequence[Mapping[str, Any]], description: str = "") -> None:
    """An artifact that is a table."""
    told = artifacts.capped_rows([redact_value(row) for row in rows])
    _show(
        key,
        lambda clean: create_table_artifact(table=told, key=clean, description=redact(description)),
    )


def show_link(key: str, link: str, text: str, description: str = "") -> None:
    """An artifact that leads elsewhere, such as to the benchmark report."""
    _show(
        key,
        lambda clean: create_link_artifact(
            link=redact(link), link_text=text, key=clean, description=redact(description)
        ),
    )


def _markdown(key: str, markdown: str, description: str) -> Any:
    return create_markdown_artifact(
        markdown=artifacts.capped(markdown), key=key, description=redact(description)
    )


def _show(key: str, create: Callable[[str], Any]) -> None:
    try:
        create(artifacts.artifact_key(key))
    except Exception as error:
        _log.warning("the artifact %s was not written: %s", key, error)
