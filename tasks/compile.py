"""Task: the engine."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.reporting import reported
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.engines.base import Toolchain
from trtforge.files import FileRef
from trtforge.spec import BuildSpec
from trtforge.stages.compile import compile_engine
from trtforge.stages.stage import StageOutcome


@task(
    name="compile",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=if_service_failed,
    timeout_seconds=4 * 3600,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def compile_checkpoint(
    spec: BuildSpec, checkpoint: tuple[FileRef, ...], toolchain: Toolchain, force: bool
) -> StageOutcome:
    """Compile the checkpoint with the shared timing cache."""
    with reported("compile"):
        return compile_engine(task_workshop(force=force), spec, checkpoint, toolchain)
