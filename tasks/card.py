"""The engine card of a finished build, as an artifact of its run."""

from typing import Any

from tasks.events import emit_published
from tasks.reporting import artifacts
from tasks.workshop import task_workshop
from trtforge.card import StageLine, engine_card
from trtforge.card_plots import token_times_of
from trtforge.stages.gpu import GpuReport, published_manifest
from trtforge.store.gates import GateRecords


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
        StageLine(stage.stage, stage.hit, stage.seconds, stage.detail, stage.log)
        for stage in report.stages
    ]
    card = engine_card(
        manifest,
        location=location,
        aliases=tuple(aliases),
        answer=report.answer,
        stages=stages,
        gates=GateRecords(shop.store.bucket).state(manifest).describe(),
    )
    token_s = token_times_of(shop.store, manifest)
    artifacts.show_card(card, location, benchmark=manifest.benchmark, token_s=token_s)
    # A build that found everything and moved nothing is no news.
    if any(aliases.values()) or not all(line.hit for line in stages):
        emit_published(manifest, location, aliases)
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
