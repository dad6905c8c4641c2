"""`trtforge plan` and `build`: from a spec to a published engine."""

import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from trtforge.cli.memory import print_memory
from trtforge.cli.output import (
    AsJson,
    SpecFile,
    err,
    open_workshop,
    out,
    print_card,
    print_json,
    print_table,
    say,
)
from trtforge.display import BuildDisplay
from trtforge.prefect_login import require_prefect
from trtforge.run_log import FORMAT_VARIABLE
from trtforge.settings import load_settings, prefect_environment

app = typer.Typer()


@app.command()
def plan(
    spec_file: SpecFile,
    gpu_pool: Annotated[
        str, typer.Option(help="Plan for a worker of this work pool; none: for this machine")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show what a build would do, and what is in the store already. Changes nothing."""
    from trtforge.spec import load_spec
    from trtforge.stages.plan import Elsewhere, make_plan

    spec = load_spec(spec_file)
    shop = open_workshop()
    seen = shop.store.sightings.get(gpu_pool, spec.engine) if gpu_pool else None
    made = make_plan(shop, spec, Elsewhere(gpu_pool, seen) if gpu_pool else None)
    if as_json:
        print_json(made.to_json())
        return
    say(made.source)
    rows = [(stage.stage, stage.status, stage.detail) for stage in made.stages]
    print_table(("Stage", "Status", "Detail"), rows)
    where = made.toolchain.device_name if made.toolchain else "a machine not looked at yet"
    say(f"Model {made.model_bytes / 1e6:.1f} MB; on {where}")
    if made.memory:
        print_memory(made.memory)


@app.command()
def build(
    spec_file: SpecFile,
    gpu_pool: Annotated[
        str, typer.Option(help="Compile and measure on a worker of this work pool; none: here")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Make every stage again")] = False,
    override: Annotated[
        str,
        typer.Option(
            metavar="REASON", help="Move the aliases even if a gate fails; kept, with why"
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Build, verify and publish an engine, as a run of the flow build-engine."""
    from trtforge.spec import load_spec

    spec = load_spec(spec_file)
    settings = load_settings()
    settings.require_bucket()
    environment = prefect_environment(settings)
    # Prefect makes no parents.
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(environment)
    # The display tells what happens; Prefect's own lines go to its UI, and warnings here.
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    if os.environ.get(FORMAT_VARIABLE) != "json":
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    require_prefect(settings)
    if not as_json:
        say(f"Prefect UI   {_ui_url(str(settings.prefect_api_url))}")
    # By name, so that the library does not depend on the flows built from it.
    flow = importlib.import_module("flows.build_engine").build_engine
    with BuildDisplay(err if as_json else out):
        result: dict[str, Any] = flow(spec, gpu_pool=gpu_pool, force=force, override=override)
    if as_json:
        print_json(result)
        return
    say("")
    print_card(result["card"], result["location"])
    hits = sum(stage["hit"] for stage in result["stages"])
    if hits:
        say(f"{hits} of {len(result['stages'])} stages were found in the store.")


def _ui_url(api_url: str) -> str:
    return api_url.removesuffix("/").removesuffix("/api")
