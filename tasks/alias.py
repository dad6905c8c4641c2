"""Task: the names by which the new engine is found."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.redaction import redacted_errors
from trtforge.spec import BuildSpec
from trtforge.stages.gpu import GpuReport, published_manifest
from trtforge.stages.publish import point_aliases


@task(
    name="alias",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=if_service_failed,
    timeout_seconds=600,
    cache_policy=NO_CACHE,
    persist_result=False,
)
@redacted_errors()
def move_aliases(spec: BuildSpec, report: GpuReport) -> dict[str, bool]:
    """Point the aliases of the spec at the engine, whose published copy has answered."""
    shop = task_workshop(force=False)
    return point_aliases(shop, spec, published_manifest(shop, report))
