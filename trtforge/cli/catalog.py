"""`trtforge catalog …`: which engines are kept, and what has to be built."""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.output import AsJson, open_workshop, print_json, print_table, say
from trtforge.settings import load_settings, prefect_environment

if TYPE_CHECKING:
    from trtforge.catalog import CellPlan

app = typer.Typer(
    name="catalog", help="Keep engines of many models on many GPU types.", no_args_is_help=True
)

CatalogFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="CATALOG.yaml",
        help="[default: TRTFORGE_CATALOG, else the one that came with trtforge]",
        show_default=False,
    ),
]


@app.callback()
def _group() -> None:
    """Keep engines of many models on many GPU types."""


@app.command()
def check(catalog_file: CatalogFile = None, as_json: AsJson = False) -> None:
    """Read the catalogue, and list the engines that it asks for. Needs no service."""
    from trtforge.catalog import load_catalog

    _, cells = load_catalog(catalog_file or load_settings().catalog)
    if as_json:
        asked = [
            {"cell": c.name, "pool": c.gpu.pool, "spec": c.spec.model_dump(mode="json")}
            for c in cells
        ]
        print_json(asked)
        return
    rows = [
        (
            cell.model.name,
            cell.gpu_type,
            cell.profile,
            f"{cell.spec.engine.backend} {cell.spec.engine.version}".strip(),
            cell.gpu.pool,
            ", ".join(cell.spec.publish.aliases),
        )
        for cell in cells
    ]
    print_table(("Model", "GPU", "Profile", "Backend", "Pool", "Aliases"), rows)
    say(f"{len(cells)} cells are right.")


@app.command()
def plan(
    catalog_file: CatalogFile = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a model; repeatable")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="GPU type; repeatable")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show what is up to date, too")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what rebuild-catalog would build, and why. Changes nothing and starts nothing."""
    from trtforge.catalog import Selection, load_catalog, plan_catalog, select
    from trtforge.catalog.matrix import Matrix
    from trtforge.store.records import now

    catalog, cells = load_catalog(catalog_file or load_settings().catalog)
    chosen = select(cells, Selection(only=tuple(only or ()), gpu_types=tuple(gpu or ())))
    plans = plan_catalog(open_workshop(), catalog, chosen, now(), ignore_schedule=bool(only))
    if as_json:
        print_json([_as_json(plan) for plan in plans])
        return
    matrix = Matrix(plans)
    columns = ("Model", "GPU", "Profile", "State", "Why", "Engine")
    rows = [row for row in matrix.rows() if everything or row["State"] != "up to date"]
    if rows:
        print_table(columns, ([row[name] for name in columns] for row in rows))
    say(matrix.summary())


@app.command()
def changed(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Such as hf://org/name")],
    as_json: AsJson = False,
) -> None:
    """Tell Prefect that weights have changed: what a webhook calls. See docs/catalogue.md."""
    from trtforge.sources import parse_source

    parse_source(source)
    environment = prefect_environment(load_settings())
    # Prefect makes no parents.
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(environment)
    # By name, so that the library does not depend on what is built from it.
    event_id = importlib.import_module("tasks.catalog_event").emit_weights_changed(source)
    if as_json:
        print_json({"source": source, "event_id": event_id})
    else:
        say(f"Told Prefect that {source} has changed (event {event_id})")


def _as_json(plan: "CellPlan") -> dict[str, object]:
    return {
        "cell": plan.cell.name,
        "status": plan.status,
        "why": list(plan.why),
        "key": plan.key,
        "engine_id": plan.engine.engine_id if plan.engine else None,
        "built_at": plan.built_at,
        "toolchain_seen_at": plan.seen_at,
    }
