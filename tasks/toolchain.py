"""Task: which toolchain compiles here, for this run and for those who plan elsewhere."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import find_gpus
from trtforge.engines.trtllm import versions
from trtforge.errors import BuildError, InputError
from trtforge.redaction import redacted_errors
from trtforge.spec import EngineSpec
from trtforge.stages.compile import probe_backend
from trtforge.store.sightings import Sighting, variant


@task(
    name="toolchain",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=if_service_failed,
    timeout_seconds=900,
    cache_policy=NO_CACHE,
    persist_result=False,
)
@redacted_errors()
def look_at_toolchain(engine: EngineSpec) -> Toolchain:
    """Probe the toolchain for an engine, and tell the store what this pool has."""
    return _look(engine)


@task(
    name="toolchains",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=if_service_failed,
    timeout_seconds=900,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def look_at_all_toolchains() -> list[Toolchain]:
    """Probe whatever this worker has; a backend that it lacks is passed over."""
    logger = get_run_logger()
    engines = [EngineSpec()]
    engines += [EngineSpec(backend="trtllm", version=version) for version in versions.SUPPORTED]
    found: list[Toolchain] = []
    for engine in engines:
        if engine.backend in {toolchain.backend for toolchain in found}:
            continue
        try:
            found.append(_look(engine))
        except (InputError, BuildError) as error:
            logger.info("no %s %s here: %s", engine.backend, engine.version, error.problem)
    return found


def _look(engine: EngineSpec) -> Toolchain:
    shop = task_workshop(force=False)
    toolchain = probe_backend(shop, engine)
    pool = _pool()
    if pool:
        gpus = find_gpus()
        first = next((gpu for gpu in gpus.models if gpu.name == toolchain.gpu_name), None)
        shop.store.sightings.put(
            Sighting(
                pool=pool,
                backend=engine.backend,
                variant=variant(engine),
                toolchain=toolchain.to_json(),
                gpu_memory_bytes=first.memory_bytes if first else None,
                gpu_count=first.count if first else 0,
            )
        )
    return toolchain


def _pool() -> str | None:
    """The work pool that started this flow run; None when no worker did."""
    context = FlowRunContext.get()
    name = getattr(context.flow_run, "work_pool_name", None) if context else None
    return str(name) if name else None
