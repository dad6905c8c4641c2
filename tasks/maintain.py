"""Tasks: the daily round through the store."""

from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from tasks.reporting import reported
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.progress import announcing
from trtforge.store.gc import DAY_S, Garbage, Rules, delete_garbage, find_garbage
from trtforge.store.health import Health, told
from trtforge.store.health import take_stock as count
from trtforge.store.records import now
from trtforge.store.rounds import Share, verify_share

DAMAGED = "trtforge.store.damaged"
_MOST_TOLD = 20
_TASK: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [10, 60, 300],
    "retry_condition_fn": if_service_failed,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@dataclass(frozen=True)
class Freed:
    """What `gc` deleted, and what it would delete."""

    deleted: tuple[Garbage, ...]
    left: tuple[Garbage, ...]


@task(name="free-space", timeout_seconds=4 * 3600, **_TASK)
def free_space(keep_days: float, uploads_days: float, *, dry_run: bool) -> Freed:
    """Delete what nothing needs: old engines, stage results, blobs, uploads, dead leases."""
    bucket = task_workshop(force=False).store.bucket
    rules = Rules(keep_s=keep_days * DAY_S, uploads_s=uploads_days * DAY_S)
    if dry_run:
        return Freed((), tuple(find_garbage(bucket, rules)))
    with reported("gc"):
        deleted = delete_garbage(bucket, rules, announcing("gc"))
    logger = get_run_logger()
    for item in deleted:
        logger.debug("deleted %s %s (%d bytes)", item.kind, item.key, item.size_bytes)
    logger.info("deleted %d objects, %d bytes", len(deleted), sum(i.size_bytes for i in deleted))
    return Freed(tuple(deleted), ())


@task(name="read-share", timeout_seconds=12 * 3600, **_TASK)
def read_a_share(read_gb: float, days: int) -> Share:
    """Read the blobs whose day it is, and compare them with their digests."""
    store = task_workshop(force=False).store
    with reported("verify"):
        share = verify_share(
            store,
            now().date(),
            most_bytes=round(read_gb * 1e9),
            days=days,
            on_progress=announcing("verify"),
        )
    damage = share.verification.remaining
    for item in damage:
        get_run_logger().error("%s", told(item))
    if damage:
        emit_event(
            DAMAGED,
            resource={"prefect.resource.id": f"trtforge.store.{store.bucket.name}"},
            payload={
                "objects": len(damage),
                "damage": [told(item) for item in damage[:_MOST_TOLD]],
            },
        )
    return share


@task(name="take-stock", timeout_seconds=3600, **_TASK)
def take_stock(freed: Freed, share: Share) -> Health:
    """Count what is in the bucket now."""
    store = task_workshop(force=False).store
    return count(store, share, freed=freed.deleted, reclaimable=freed.left)


def show_health(health: Health) -> None:
    """The figures as the table artifact `store-health`."""
    state = f"{len(health.damage)} objects are damaged" if health.damage else "The store is whole"
    create_table_artifact(table=health.rows(), key="store-health", description=state)
