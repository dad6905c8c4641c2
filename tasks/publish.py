"""Task: the engine into the registry, and tried from there."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.reporting import reported
from tasks.reporting.artifacts import show_link
from tasks.retrying import if_service_failed
from tasks.workshop import task_workshop
from trtforge.engines.base import Toolchain
from trtforge.spec import BuildSpec
from trtforge.stages.publish import Publication, publish
from trtforge.store import Manifest


@task(
    name="publish",
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=if_service_failed,
    timeout_seconds=3600,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def publish_engine(
    spec: BuildSpec, manifest: Manifest, toolchain: Toolchain, force: bool
) -> Publication:
    """Publish, and try the published copy."""
    shop = task_workshop(force=force)
    with reported("publish", engine_id=manifest.engine_id):
        publication = publish(shop, spec, manifest, toolchain)
    show_link(
        "manifest",
        shop.store.manifest_uri(publication.manifest.engine_id),
        f"manifest of engine {publication.manifest.engine_id[:12]}",
    )
    return publication
