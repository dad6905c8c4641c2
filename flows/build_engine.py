"""Flow: one BuildSpec → one published engine. The half that needs a GPU runs where one is."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.gpu_stage import compile_and_measure
from tasks.alias import move_aliases
from tasks.card import show_card
from tasks.cards import held_cards_if_gpu
from tasks.convert import convert_model
from tasks.gpu import ask_gpu_pool
from tasks.plan import plan_build
from tasks.pull import pull_model
from tasks.reporting import observed_run
from trtforge import telemetry
from trtforge.spec import BuildSpec
from trtforge.stages.gpu import make_request, reported_stage


@flow(
    name="build-engine",
    description="Pull weights, convert, compile, benchmark, and publish a verified engine.",
    flow_run_name="{spec.model.source}",
    persist_result=False,
    validate_parameters=True,
)
def build_engine(
    spec: BuildSpec,
    gpu_pool: Annotated[str, Field(json_schema_extra={"position": 1})] = "",
    force: Annotated[bool, Field(json_schema_extra={"position": 2})] = False,
    override: Annotated[str, Field(json_schema_extra={"position": 3})] = "",
) -> dict[str, Any]:
    """Turn a Hugging Face model into a verified, benchmarked, published engine.

    Args:
        spec: What to build.
        gpu_pool: Work pool of the GPU that compiles, measures and tries the engine, such as
            gpu-docker; empty: the machine that runs this flow does that too.
        force: Make every stage again, even those the store has.
        override: Why the engine is to have its aliases even if it fails a gate; kept with it.
    """
    about = {"model": spec.model.source, "gpu_pool": gpu_pool, "backend": spec.engine.backend}
    with observed_run("build-engine", **about):
        plan = plan_build(spec, gpu_pool, force)
        model, pulled = pull_model(spec, force)
        converted = convert_model(spec, model, force)
        request = make_request(
            spec,
            model,
            pulled.result,
            converted.result,
            force=force,
            override=override,
            traceparent=telemetry.current_traceparent(),
        )
        if gpu_pool:
            report = ask_gpu_pool(request, gpu_pool)
        else:
            assert plan.toolchain is not None, "this machine's toolchain was looked at"
            gpu = plan.toolchain.gpu_name
            with held_cards_if_gpu(plan.toolchain, spec.ranks), telemetry.gpu_held(gpu, spec.ranks):
                report = compile_and_measure(request, plan.toolchain, [])
        aliases = move_aliases(spec, report)
        stages = (reported_stage(pulled), reported_stage(converted), *report.stages)
        return show_card(report.model_copy(update={"stages": stages}), aliases)
