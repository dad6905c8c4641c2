"""Flow: the daily round through the store: free what nothing needs, read a share of the rest."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.maintain import free_space, read_a_share, show_health, take_stock
from tasks.reporting import observed_run
from trtforge.store.health import require_whole


@flow(
    name="maintain-store",
    description="Free what nothing needs, read a share of all bytes, and show how the store is.",
    persist_result=False,
    validate_parameters=True,
)
@observed_run("maintain-store")
def maintain_store(
    dry_run: Annotated[bool, Field(json_schema_extra={"position": 0})] = False,
    keep_days: Annotated[float, Field(ge=0, json_schema_extra={"position": 1})] = 30.0,
    uploads_days: Annotated[float, Field(ge=0, json_schema_extra={"position": 2})] = 7.0,
    read_gb: Annotated[float, Field(gt=0, json_schema_extra={"position": 3})] = 200.0,
    read_all_within_days: Annotated[int, Field(ge=1, json_schema_extra={"position": 4})] = 30,
) -> dict[str, Any]:
    """Look after the bucket. Safe while engines are built and published.

    Args:
        dry_run: Delete nothing; say what would go.
        keep_days: Engines that no alias points at, and stage results, stay this long.
        uploads_days: Multipart uploads that were begun before this are aborted.
        read_gb: Most bytes to read in one run, in 10^9.
        read_all_within_days: Every byte is read once in so many daily runs, or in more where a
            run's share would be larger than read_gb.
    """
    freed = free_space(keep_days, uploads_days, dry_run=dry_run)
    found = read_a_share(read_gb, read_all_within_days)
    health = take_stock(freed, found)
    show_health(health)
    require_whole(found.verification)
    return health.to_json()
