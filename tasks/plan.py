"""Task: what the build will do."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.gpu import require_gpu_pool
from tasks.reporting import reported
from tasks.reporting.artifacts import show_memory, show_plan
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.spec import BuildSpec
from trtforge.stages.history import read_history
from trtforge.stages.plan import Elsewhere, Plan, make_plan


@task(
    name="plan",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=if_service_failed,
    timeout_seconds=1800,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def plan_build(spec: BuildSpec, gpu_pool: str, force: bool) -> Plan:
    """Check the spec against the world before anything is made."""
    with reported("plan"):
        return _plan(spec, gpu_pool, force)


def _plan(spec: BuildSpec, gpu_pool: str, force: bool) -> Plan:
    shop = task_workshop(force=force)
    elsewhere = None
    if gpu_pool:
        require_gpu_pool(gpu_pool)
        elsewhere = Elsewhere(gpu_pool, shop.store.sightings.get(gpu_pool, spec.engine))
    plan = make_plan(shop, spec, elsewhere)
    show_plan(
        plan.stages,
        plan.source,
        model_bytes=plan.model_bytes,
        backend=spec.engine.backend,
        gpu=plan.toolchain.gpu_name if plan.toolchain else None,
        history=None if plan.complete else read_history(shop.store),
    )
    show_memory(plan.memory)
    logger = get_run_logger()
    for stage in plan.stages:
        logger.info("plan: %s %s %s", stage.stage, stage.status, stage.detail)
    return plan
