"""`trtforge deploy`: make a Prefect server match the files."""

import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from trtforge.cli.output import AsJson, err, print_json, print_table, say
from trtforge.settings import load_settings, prefect_environment

app = typer.Typer()
_DONE = {"create": "created", "update": "updated", "delete": "deleted"}


@app.command()
def deploy(
    files: Annotated[
        Path | None,
        typer.Option(help="Directory of the files; without it, those that trtforge comes with"),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Only this pool and its deployments; may be repeated"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference, and change nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the Prefect server match the files: pools, limits, deployments, schedules, automations.

    Done again, it changes nothing. What was paused or made in the UI stays.
    """
    environment = prefect_environment(load_settings())
    # Prefect makes no parents.
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(environment)
    with err.status("comparing"):
        # By name, so that the library does not depend on what deploys it.
        sync = importlib.import_module("deployments.sync").sync
        report = sync(files, dry_run=dry_run, only_pools=pool)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)


def _show(report: Any) -> None:
    rows = [
        (
            change.action if report.dry_run else _DONE[change.action],
            change.kind,
            change.name,
            "\n".join(change.details),
        )
        for change in report.changes
    ]
    if rows:
        print_table(("Would" if report.dry_run else "Done", "What", "Name", "Difference"), rows)
    for notice in report.notices:
        say(f"{notice.status:<9}{notice.kind} {notice.name}: {notice.detail}")
    if not rows:
        say(f"Nothing to change: all {report.unchanged} objects match the files")
    elif report.dry_run:
        say(f"{len(rows)} to change, {report.unchanged} match the files; nothing was changed")
    else:
        say(f"{len(rows)} changed, {report.unchanged} matched the files already")
