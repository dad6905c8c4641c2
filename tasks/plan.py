"""Task: what the build will do."""

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.gpu import require_gpu_pool
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.spec import BuildSpec
from trtforge.stages.plan import Elsewhere, Plan, make_plan


@task(
    name="plan",
    tags=["trtforge"],
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=if_service_failed,
    timeout_seconds=1800,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def plan_build(spec: BuildSpec, gpu_pool: str, force: bool) -> Plan:
    """Check the spec against the world before anything is made."""
    shop = task_workshop(force=force)
    elsewhere = None
    if gpu_pool:
        require_gpu_pool(gpu_pool)
        elsewhere = Elsewhere(gpu_pool, shop.store.sightings.get(gpu_pool, spec.engine))
    plan = make_plan(shop, spec, elsewhere)
    rows = [{"Stage": s.stage, "Status": s.status, "Detail": s.detail} for s in plan.stages]
    create_table_artifact(table=rows, key="plan", description=f"Plan for {plan.source}")
    logger = get_run_logger()
    for stage in plan.stages:
        logger.info("plan: %s %s %s", stage.stage, stage.status, stage.detail)
    return plan
