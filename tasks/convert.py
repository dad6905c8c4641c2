"""Task: the TensorRT-LLM checkpoint."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.reporting import reported
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.spec import BuildSpec
from trtforge.stages.convert import convert
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import StageOutcome


@task(
    name="convert",
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=if_service_failed,
    timeout_seconds=4 * 3600,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def convert_model(spec: BuildSpec, model: PulledModel, force: bool) -> StageOutcome:
    """Convert the Hugging Face files."""
    with reported("convert"):
        return convert(task_workshop(force=force), spec, model)
