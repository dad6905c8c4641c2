"""resolve: the best engine for a model that runs on a machine, or what each one lacks."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import H100, MODEL, alias, engine

from trtforge.engines.gpu import GpuModel
from trtforge.engines.machine import Machine, Runtime
from trtforge.store import Manifest
from trtforge.store.compatibility import RULES, Mismatch, compatibility
from trtforge.store.resolve import (
    ModelUnknownError,
    NoEngineFitsError,
    Wishes,
    aliases_by_engine,
    is_model,
    resolve,
)

TRTLLM = Runtime("trtllm", "1.2.1", "10.14.1")
HOST = Machine(
    gpus=(GpuModel(H100, "9.0", 80 << 30, 2),),
    driver_version="580.82.07",
    os="linux",
    arch="x86_64",
    cpu="x86_64 avx2 avx512f avx512_bf16",
    runtimes=(TRTLLM, Runtime("aoti", "2.13.0+cu130")),
)
NO_GPU = replace(HOST, gpus=(), driver_version=None)


def host(**changes: Any) -> Machine:
    return replace(HOST, **changes)


def gpu(name: str = H100, capability: str | None = "9.0", count: int = 1) -> tuple[GpuModel, ...]:
    return (GpuModel(name, capability, None, count),)


def best(manifests: list[Manifest], machine: Machine = HOST, **wishes: Any) -> Manifest:
    return resolve(manifests, [], machine, MODEL, Wishes(**wishes)).require().manifest


class TestCompatibility:
    def test_an_engine_runs_where_it_was_built(self) -> None:
        assert compatibility(engine(), HOST) == ()
        assert compatibility(engine(backend="aoti"), HOST) == ()
        assert compatibility(engine(on="cpu", backend="aoti"), replace(HOST, runtimes=())) == ()

    @pytest.mark.parametrize(
        ("machine", "built", "field", "needed", "found"),
        [
            (host(gpus=gpu("NVIDIA H200")), {}, "gpu_name", H100, "NVIDIA H200"),
            (host(gpus=gpu(capability="8.9")), {}, "compute_capability", "9.0", "8.9"),
            (host(gpus=gpu()), {"tp": 2}, "gpu_count", "2", "1"),
            (NO_GPU, {}, "gpu_name", H100, "no GPU"),
            (host(driver_version="575.51"), {}, "driver_version", "580 or newer", "575.51"),
            (host(os="windows"), {}, "os", "linux", "windows"),
            (host(arch="aarch64"), {}, "arch", "x86_64", "aarch64"),
            (
                host(runtimes=(Runtime("trtllm", "1.1.0"),)),
                {},
                "backend_version",
                "1.2.1",
                "1.1.0",
            ),
            (
                host(runtimes=(Runtime("trtllm", "1.2.1", "10.13.3"),)),
                {},
                "tensorrt_version",
                "10.14.1",
                "10.13.3",
            ),
            (
                host(cpu="x86_64 avx2"),
                {"on": "cpu", "backend": "aoti", "backend_version": "2.13.0+cu130"},
                "cpu",
                "x86_64 avx2 avx512f",
                "x86_64 avx2",
            ),
            (
                HOST,
                {"on": "cpu", "backend": "aoti", "backend_version": "2.12.0"},
                "backend_version",
                "2.12.0",
                "2.13.0+cu130",
            ),
        ],
    )
    def test_the_field_that_differs_is_named_with_both_values(
        self, machine: Machine, built: dict[str, Any], field: str, needed: str, found: str
    ) -> None:
        assert compatibility(engine(**built), machine) == (Mismatch(field, needed, found),)

    @pytest.mark.parametrize(
        ("cuda", "built_with", "machine", "runs"),
        [
            ("12.4", "550.54.15", "525.60.13", True),  # minor version compatibility
            ("12.4", "550.54.15", "520.61", False),
            ("12.4", "550.54.15", "580.65.06", True),  # older code on a newer driver
            ("13.0", "580.65.06", "580.65.06", True),
            ("13.0", "580.65.06", "575", False),
            ("13.0", "575.51", "575.51", True),  # forward compatibility package: it ran there
            ("14.0", "610.10", "605.1", False),  # not in the table: what it was built with
            ("14.0", "610.10", "610.10", True),
            ("13.0", None, "579.99", False),
            (None, None, "450", True),
        ],
    )
    def test_the_driver_has_a_floor_and_no_ceiling(
        self, cuda: str | None, built_with: str | None, machine: str, runs: bool
    ) -> None:
        manifest = engine(cuda_version=cuda, driver_version=built_with)
        assert (compatibility(manifest, host(driver_version=machine)) == ()) is runs

    def test_what_is_not_known_of_a_machine_is_not_compared(self) -> None:
        assert compatibility(engine(), Machine(gpus=gpu(capability=None))) == ()

    def test_but_what_an_engine_is_compiled_for_must_be_known(self) -> None:
        [found] = compatibility(engine(on="cpu", backend="aoti"), Machine(gpus=gpu()))
        assert found == Mismatch("cpu", "x86_64 avx2 avx512f", "not stated")

    def test_what_a_manifest_does_not_record_counts_as_different(self) -> None:
        found = compatibility(engine(os=None, arch="", compute_capability=None), HOST)
        assert [(m.field, m.engine) for m in found] == [
            ("compute_capability", "not recorded"),
            ("os", "not recorded"),
            ("arch", "not recorded"),
        ]

    def test_of_several_kinds_of_gpu_the_one_that_fits_counts(self) -> None:
        mixed = host(gpus=(*gpu("NVIDIA L4", "8.9", 4), *gpu(H100, "9.0")))
        assert compatibility(engine(), mixed) == ()
        # Four L4 do not make up for an H100 that is missing.
        assert compatibility(engine(tp=2), mixed) == (Mismatch("gpu_count", "2", "1"),)

    def test_a_backend_that_the_machine_says_nothing_of_brings_its_own_runtime(self) -> None:
        assert compatibility(engine(), host(runtimes=(Runtime("aoti", "2.12.0"),))) == ()

    def test_vector_units_beyond_those_used_do_no_harm(self) -> None:
        older = engine(on="cpu", backend="aoti", cpu="x86_64 avx2")
        assert compatibility(older, HOST) == ()

    def test_every_rule_names_its_source(self) -> None:
        assert all(len(rule.source) > 20 for rule in RULES)
        assert len({rule.field for rule in RULES}) == len(RULES)


class TestTheBest:
    def test_prod_comes_before_latest_and_latest_before_newer_ones(self) -> None:
        old, middle, new = (engine(hours_old=h) for h in (9, 5, 1))
        manifests = [new, old, middle]

        def chosen(*aliases: Any) -> Manifest:
            return resolve(manifests, aliases, HOST, MODEL).require().manifest

        assert chosen() == new
        assert chosen(alias(middle, "canary")) == middle
        assert chosen(alias(middle, "latest"), alias(new, "canary")) == middle
        assert chosen(alias(middle, "latest"), alias(old, "prod")) == old

    def test_an_alias_that_is_asked_for_decides(self) -> None:
        old, new = engine(hours_old=9), engine(hours_old=1)
        aliases = [alias(old, "prod"), alias(new, "latest")]
        found = resolve([old, new], aliases, HOST, MODEL, Wishes(alias="latest"))
        assert found.require().manifest == new
        [left] = found.near_misses
        assert left.mismatches == (Mismatch("alias", "prod", "latest"),)

    def test_an_alias_for_another_gpu_does_not_make_up_for_the_gpu(self) -> None:
        there, here = engine(gpu_name="NVIDIA L4", compute_capability="8.9"), engine()
        found = resolve([there, here], [alias(there, "prod")], HOST, MODEL)
        assert found.require().manifest == here

    def test_a_gpu_is_used_where_there_is_one(self) -> None:
        cpu = engine(on="cpu", backend="aoti", backend_version="2.13.0+cu130", hours_old=1)
        card = engine(hours_old=9)
        found = resolve([cpu, card], [alias(cpu, "prod")], HOST, MODEL)
        assert [c.manifest for c in found.fitting] == [card, cpu]
        assert resolve([cpu, card], [], NO_GPU, MODEL).require().manifest == cpu

    def test_on_a_cpu_the_engine_that_uses_more_of_it_wins(self) -> None:
        plain = engine(on="cpu", backend="aoti", cpu="x86_64 avx2", hours_old=1)
        wide = engine(on="cpu", backend="aoti", cpu="x86_64 avx2 avx512f", hours_old=9)
        machine = replace(NO_GPU, runtimes=())
        assert best([plain, wide], machine) == wide
        assert best([plain, wide], replace(machine, cpu="x86_64 avx2")) == plain

    def test_a_backend_that_is_installed_comes_before_one_that_is_not(self) -> None:
        aoti, trtllm = engine(backend="aoti", hours_old=9), engine(hours_old=1)
        machine = host(runtimes=(Runtime("aoti", "2.13.0+cu130"),))
        assert best([aoti, trtllm], machine) == aoti
        assert best([aoti, trtllm], machine, backend="trtllm") == trtllm

    def test_limits_are_held_against_the_configuration_in_effect(self) -> None:
        small = engine(config={"max_batch_size": 4}, hours_old=1)
        large = engine(config={"max_batch_size": 64, "max_seq_len": 8192}, hours_old=9)
        unknown = engine(config={"max_batch_size": None}, hours_old=2)
        found = resolve([small, large, unknown], [], HOST, MODEL, Wishes(min_batch_size=16))
        assert [c.manifest for c in found.fitting] == [large]
        assert [c.mismatches[0].engine for c in found.near_misses] == ["4", "not recorded"]
        assert best([small, large], min_seq_len=8192) == large
        assert best([small, large], min_batch_size=4) == small

    @given(seed=st.integers(0, 2**32 - 1))
    def test_the_order_in_which_the_store_lists_does_not_matter(self, seed: int) -> None:
        manifests = [
            engine(hours_old=h, gpu_name=name) for h in (1, 2, 2.5) for name in (H100, "NVIDIA L4")
        ]
        expected = resolve(manifests, [], HOST, MODEL)
        shuffled = manifests[:]
        random.Random(seed).shuffle(shuffled)
        assert resolve(shuffled, [], HOST, MODEL) == expected


class TestNearMisses:
    def test_the_nearest_come_first_and_every_difference_is_listed(self) -> None:
        far = engine(gpu_name="NVIDIA L4", compute_capability="8.9", hours_old=1)
        near = engine(tensorrt_version="10.13.3", hours_old=9)
        nearer_and_newer = engine(tensorrt_version="10.15.0", hours_old=5)
        cpu = engine(on="cpu", backend="aoti", arch="aarch64", cpu="aarch64 asimd", hours_old=2)
        found = resolve([far, near, cpu, nearer_and_newer], [], HOST, MODEL)
        assert found.fitting == ()
        assert [c.manifest for c in found.near_misses] == [nearer_and_newer, near, far, cpu]
        assert [m.field for m in found.near_misses[2].mismatches] == [
            "gpu_name",
            "compute_capability",
        ]
        with pytest.raises(
            NoEngineFitsError,
            match=r"MODEL = 'SmolLM2.*none of its 4 engines fits 2 x NVIDIA H100.*needs "
            r"tensorrt_version '10\.15\.0' and finds '10\.14\.1'",
        ) as caught:
            found.require()
        assert caught.value.exit_code == 2

    def test_on_a_machine_without_a_gpu_engines_for_cpus_are_nearer(self) -> None:
        card = engine(hours_old=1)
        cpu = engine(on="cpu", backend="aoti", cpu="x86_64 amx_bf16", backend_version="2")
        found = resolve([card, cpu], [], NO_GPU, MODEL)
        assert [c.manifest for c in found.near_misses] == [cpu, card]

    def test_a_model_nobody_built_is_answered_with_those_that_exist(self) -> None:
        with pytest.raises(ModelUnknownError, match=f"Did you mean '{MODEL}'"):
            resolve([engine()], [], HOST, "SmolLM-135M-Instruct")
        with pytest.raises(ModelUnknownError, match="Build one"):
            resolve([], [], HOST, MODEL)


@pytest.mark.parametrize(
    "text",
    [
        MODEL,
        f"hf://HuggingFaceTB/{MODEL}",
        f"hf://HuggingFaceTB/{MODEL}@12fd25f",
        engine().core.model.content_digest,
        engine().core.model.content_digest[:8].upper(),
    ],
)
def test_a_model_goes_by_name_source_and_digest(text: str) -> None:
    assert is_model(engine().core.model, text)


@pytest.mark.parametrize(
    "text", ["", MODEL[:-1], f"hf://HuggingFaceTB/{MODEL}@main", engine().core.model.name.lower()]
)
def test_and_by_nothing_else(text: str) -> None:
    assert not is_model(engine().core.model, text)


def test_the_aliases_of_an_engine_are_listed_once_the_important_first() -> None:
    one = engine()
    pairs = [alias(one, name) for name in ("canary", "latest", "a", "prod", "canary")]
    assert aliases_by_engine(pairs) == {one.engine_id: ("prod", "latest", "a", "canary")}
