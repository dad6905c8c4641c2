"""What a plan knows of a build that another machine will compile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import write_tiny_model
from prebuilt import H100, prebuild, sight, toolchain_of

from trtforge.engines.aoti.backend import EngineOptionError
from trtforge.engines.memory import GpuMemoryError
from trtforge.errors import InputError
from trtforge.spec import BuildSpec, parse_spec
from trtforge.stages.plan import Elsewhere, Plan, make_plan
from trtforge.stages.stage import Workshop

POOL = "gpu-h100"
SHORT: dict[str, Any] = {
    "engine": {"max_batch_size": 1, "max_input_len": 48, "max_seq_len": 96, "max_num_tokens": 96},
    "benchmark": {"workload": {"input_tokens": 16, "output_tokens": 8}},
    "gates": {"new_tokens": 8},
    "publish": {"max_output_len": 12},
}


@pytest.fixture
def spec(tmp_path: Path) -> BuildSpec:
    return parse_spec({"model": {"source": str(write_tiny_model(tmp_path / "tiny"))}, **SHORT})


def plan_of(shop: Workshop, spec: BuildSpec) -> Plan:
    return make_plan(shop, spec, Elsewhere(POOL, shop.store.sightings.get(POOL, spec.engine)))


def status(plan: Plan) -> dict[str, str]:
    return {stage.stage: stage.status for stage in plan.stages}


def test_where_nobody_has_looked_what_needs_the_gpu_follows(
    shop: Workshop, spec: BuildSpec
) -> None:
    prebuild(shop, spec, toolchain_of(H100))
    plan = plan_of(shop, spec)
    assert plan.toolchain is None
    assert status(plan) == {
        "pull": "in store",
        "convert": "in store",
        "compile": "follows",
        "benchmark": "follows",
        "publish": "follows",
    }
    assert not plan.complete


def test_a_sighting_tells_that_all_is_done(shop: Workshop, spec: BuildSpec) -> None:
    prebuild(shop, spec, toolchain_of(H100))
    sight(shop, POOL, toolchain_of(H100))
    plan = plan_of(shop, spec)
    assert plan.complete
    assert set(status(plan).values()) == {"in store"}
    assert plan.toolchain == toolchain_of(H100)
    assert plan.to_json()["toolchain"]["gpu_name"] == H100


def test_another_driver_there_is_another_engine(shop: Workshop, spec: BuildSpec) -> None:
    prebuild(shop, spec, toolchain_of(H100))
    sight(shop, POOL, toolchain_of(H100, driver_version="590.12"))
    plan = plan_of(shop, spec)
    assert status(plan)["convert"] == "in store"
    assert status(plan)["compile"] == "to do"


def test_an_alias_that_points_elsewhere_is_work_left(shop: Workshop, spec: BuildSpec) -> None:
    prebuild(shop, spec, toolchain_of(H100))
    sight(shop, POOL, toolchain_of(H100))
    more = spec.model_copy(
        update={"publish": spec.publish.model_copy(update={"aliases": ("latest", "prod")})}
    )
    prebuilt = prebuild(shop, more.model_copy(update={"publish": spec.publish}), toolchain_of(H100))
    assert prebuilt is not None
    [publish] = [s for s in plan_of(shop, more).stages if s.stage == "publish"]
    assert publish.status != "in store"


def test_a_gate_that_failed_before_is_told_before_a_gpu_is_asked_for(
    shop: Workshop, spec: BuildSpec
) -> None:
    prebuild(shop, spec, toolchain_of(H100), wrong="token 3 is 7 instead of 9")
    sight(shop, POOL, toolchain_of(H100))
    publish = plan_of(shop, spec).stages[-1]
    assert publish.status == "to do"
    assert "token 3 is 7 instead of 9" in publish.detail


def test_a_wrong_option_is_refused_here_already(shop: Workshop, tmp_path: Path) -> None:
    source = str(write_tiny_model(tmp_path / "tiny"))
    wrong = parse_spec(
        {"model": {"source": source}, **SHORT, "engine": {**SHORT["engine"], "options": {"x": 1}}}
    )
    with pytest.raises(EngineOptionError):
        plan_of(shop, wrong)


def test_an_engine_too_large_for_the_gpu_that_was_seen_is_refused(
    shop: Workshop, tmp_path: Path
) -> None:
    big = parse_spec(
        {
            "model": {"source": str(write_tiny_model(tmp_path / "tiny"))},
            **SHORT,
            "engine": {**SHORT["engine"], "backend": "trtllm"},
        }
    )
    seen = toolchain_of(H100, backend="trtllm", backend_version="1.2.1")
    sight(shop, POOL, seen, big.engine, memory_bytes=1 << 30)
    with pytest.raises(InputError, match="GPU"):
        plan_of(shop, big)
    sight(shop, POOL, seen, big.engine, memory_bytes=80 << 30)
    assert plan_of(shop, big).memory is not None


def test_so_is_one_of_aoti_and_nothing_is_pulled_for_it(
    shop: Workshop, tmp_path: Path, stored: Callable[[], set[str]]
) -> None:
    source = str(write_tiny_model(tmp_path / "tiny"))
    big = parse_spec(
        {"model": {"source": source}, "engine": {"max_batch_size": 4096, "max_seq_len": 4096}}
    )
    assert plan_of(shop, big).memory is None  # a pool that nobody has looked at may have no GPU
    sight(shop, POOL, toolchain_of(H100), big.engine, memory_bytes=6 << 30)
    seen = stored()
    with pytest.raises(GpuMemoryError, match=r"engine\.max_batch_size = 4096: .* at most \d+ at"):
        plan_of(shop, big)
    assert stored() == seen
    sight(shop, POOL, toolchain_of(H100), big.engine, memory_bytes=80 << 30)
    assert plan_of(shop, big).memory is not None


def test_where_a_cpu_compiles_no_gpus_memory_is_counted(shop: Workshop, spec: BuildSpec) -> None:
    sight(shop, POOL, toolchain_of())
    assert plan_of(shop, spec).memory is None
