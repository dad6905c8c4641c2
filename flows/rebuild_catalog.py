"""Flow: the catalogue against the world; what changed is built, and nothing else."""

from typing import Annotated, Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from tasks.catalog import look_again, plan_cells, read_catalog
from tasks.catalog_builds import MatrixArtifact, build_changed, require_planned
from tasks.reporting import observed_run
from trtforge.catalog import Selection, select
from trtforge.catalog.matrix import Matrix
from trtforge.store.records import now


def _run_name() -> str:
    asked = flow_run.parameters
    about = asked.get("source") or ", ".join(asked.get("only") or ()) or "everything"
    return f"catalogue: {about}"


@flow(
    name="rebuild-catalog",
    description="Rebuild the engines of the catalogue whose weights, toolchain or spec changed.",
    flow_run_name=_run_name,
    persist_result=False,
    validate_parameters=True,
)
@observed_run("rebuild-catalog")
def rebuild_catalog(
    only: Annotated[tuple[str, ...], Field(json_schema_extra={"position": 0})] = (),
    source: Annotated[str, Field(json_schema_extra={"position": 1})] = "",
    gpu_types: Annotated[tuple[str, ...], Field(json_schema_extra={"position": 2})] = (),
    dry_run: Annotated[bool, Field(json_schema_extra={"position": 3})] = False,
    ignore_window: Annotated[bool, Field(json_schema_extra={"position": 4})] = False,
) -> State[Any]:
    """Compare the catalogue with its sources, its pools and the store, and build what changed.

    Args:
        only: Names of models; none is all of them. Who is named is built whatever its schedule
            says, and tried again if it has failed.
        source: Only models with these weights, such as hf://org/name: what an event says.
        gpu_types: Only these GPU types of the catalogue; none is all.
        dry_run: Only say what would be built.
        ignore_window: Start builds outside the build window too.
    """
    catalog, cells = read_catalog()
    chosen = select(cells, Selection(tuple(only), source, tuple(gpu_types)))
    if not chosen:
        return Completed(message=f"No model of the catalogue is chosen (source {source!r})")
    troubles = {} if dry_run else look_again(catalog, chosen)
    planned_at = now()
    plans = plan_cells(catalog, chosen, ignore_schedule=bool(only))
    matrix = Matrix(plans)
    matrix.explain_unknown(plans, troubles)
    shown = MatrixArtifact(matrix)
    shown.show()
    require_planned(plans)
    if not dry_run:
        build_changed(
            catalog,
            plans,
            shown,
            planned_at=planned_at,
            ignore_window=ignore_window,
            insist=bool(only),
        )
    return Completed(message=matrix.told(), data={line.cell: line.state for line in matrix.lines})
