"""Task: the model's files into the store."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.reporting import reported
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.spec import BuildSpec
from trtforge.stages.pull import PulledModel, pull
from trtforge.stages.stage import StageOutcome


@task(
    name="pull",
    retries=3,
    retry_delay_seconds=[2, 10, 60],
    retry_condition_fn=if_service_failed,
    timeout_seconds=6 * 3600,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def pull_model(spec: BuildSpec, force: bool) -> tuple[PulledModel, StageOutcome]:
    """Fetch, check and store the weights, tokenizer and licence."""
    with reported("pull"):
        return pull(task_workshop(force=force), spec)
