"""The engine card of a finished build, as an artifact of its run."""

from typing import Any

from prefect.artifacts import create_markdown_artifact

from tasks.workshop import task_workshop
from trtforge.card import StageLine, engine_card
from trtforge.stages.gpu import GpuReport, published_manifest


def show_card(report: GpuReport, aliases: dict[str, bool]) -> dict[str, Any]:
    """Write the card; what `trtforge build --json` prints.

    Args:
        report: With all stages of the build.
        aliases: Which of them moved.
    """
    shop = task_workshop(force=False)
    manifest = published_manifest(shop, report)
    location = shop.store.manifest_uri(manifest.engine_id)
    stages = [
        StageLine(stage.stage, stage.hit, stage.seconds, stage.detail) for stage in report.stages
    ]
    card = engine_card(
        manifest,
        location=location,
        aliases=tuple(aliases),
        answer=report.answer,
        stages=stages,
    )
    create_markdown_artifact(card, key="engine-card", description=location)
    return {
        "engine_id": manifest.engine_id,
        "location": location,
        "answer": report.answer,
        "aliases": aliases,
        "stages": [
            {"stage": line.stage, "hit": line.hit, "seconds": line.seconds, "detail": line.detail}
            for line in stages
        ],
        "card": card,
    }
