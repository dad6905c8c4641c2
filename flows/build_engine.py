"""Flow: one BuildSpec → one published engine."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from tasks.benchmark import benchmark_engine
from tasks.compile import compile_checkpoint
from tasks.convert import convert_model
from tasks.plan import plan_build
from tasks.publish import publish_engine
from tasks.pull import pull_model
from trtforge.card import StageLine, engine_card
from trtforge.spec import BuildSpec
from trtforge.stages.compile import engine_files
from trtforge.stages.publish import make_manifest


@flow(
    name="build-engine",
    description="Pull weights, convert, compile, benchmark, and publish a verified engine.",
    flow_run_name="{spec.model.source}",
    persist_result=False,
    validate_parameters=True,
)
def build_engine(spec: BuildSpec, force: bool = False) -> dict[str, Any]:
    """Turn a Hugging Face model into a verified, benchmarked, published engine.

    Args:
        spec: What to build.
        force: Make every stage again, even those the store has.
    """
    plan = plan_build(spec, force)
    toolchain = plan.toolchain
    model, pulled = pull_model(spec, force)
    converted = convert_model(spec, model, force)
    compiled = compile_checkpoint(spec, converted.result.outputs, toolchain, force)
    engine = engine_files(compiled.result.outputs)
    measured = benchmark_engine(spec, model, engine, toolchain, force)
    manifest = make_manifest(
        spec, model, converted.result, compiled.result, measured.result, toolchain
    )
    publication = publish_engine(spec, manifest, toolchain, force)

    stages = [
        StageLine(outcome.result.stage, outcome.hit, outcome.seconds, outcome.detail)
        for outcome in (pulled, converted, compiled, measured, publication.outcome)
    ]
    # An engine that was published before keeps its first manifest; the card tells of this run.
    card = engine_card(
        publication.manifest.model_copy(update={"benchmark": manifest.benchmark}),
        location=publication.location,
        aliases=tuple(publication.aliases),
        answer=publication.answer,
        stages=stages,
    )
    create_markdown_artifact(card, key="engine-card", description=publication.location)
    return {
        "engine_id": publication.manifest.engine_id,
        "location": publication.location,
        "answer": publication.answer,
        "aliases": publication.aliases,
        "stages": [
            {"stage": line.stage, "hit": line.hit, "seconds": line.seconds, "detail": line.detail}
            for line in stages
        ],
        "card": card,
    }
