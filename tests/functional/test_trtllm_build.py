"""Compiling with `trtllm-build`, in the stand-in toolchain: real processes and files.

What cannot be shown without a GPU is whether TensorRT-LLM itself does what the stand-in does;
`make gpu-check` is for that.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from standin.environment import (
    STANDIN_PYTHON,
    standin_environment,
    table_parser,
    timing_cache_entries,
)
from standin_build import SPEC, Place, checkpoint, with_options

from trtforge.engines.trtllm import build_failures as failures
from trtforge.engines.trtllm.backend import TrtllmBackend

Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Choose what the stand-in does: `configure(fault="hang", gpus=2, version="1.0.0")`."""
    for name, value in standin_environment(TRTFORGE_STANDIN_MARK=str(tmp_path)).items():
        monkeypatch.setenv(name, value)

    def choose(**how: object) -> None:
        for name, value in how.items():
            monkeypatch.setenv(f"TRTFORGE_STANDIN_{name.upper()}", str(value))

    return choose


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return partial(checkpoint, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def place(tmp_path: Path, checkpoints: Callable[..., Path], configure: Configure) -> Place:
    del configure
    (tmp_path / "work").mkdir()
    return Place(tmp_path / "work", tmp_path / "engine", tmp_path / "model.cache", checkpoints())


class TestBuild:
    def test_an_engine_with_its_config_cache_and_log(self, place: Place) -> None:
        built = place.build()
        assert [file.path for file in built.files] == ["config.json", "rank0.engine"]
        assert place.engine_config()["version"] == "1.2.1"
        assert timing_cache_entries(place.cache)
        assert place.log == place.log_file.read_text().splitlines()
        assert "Total time of building all engines" in place.log[-1]
        # Nothing else is left where it was built.
        assert list(place.work_dir.iterdir()) == [place.log_file]

    def test_the_command_is_recorded_and_names_no_place_of_this_machine(
        self, place: Place, tmp_path: Path
    ) -> None:
        built = place.build()
        program, *arguments = built.command
        assert program == "trtllm-build"
        assert table_parser("1.2.1").parse_args(arguments).max_num_tokens == 1024
        for told in (" ".join(built.command), json.dumps(place.engine_config())):
            assert str(tmp_path) not in told

    def test_what_took_effect_is_read_from_the_engine(self, place: Place) -> None:
        spec = SPEC.model_copy(update={"max_num_tokens": 8192})
        built = place.build(spec)
        assert built.effective["max_num_tokens"] == 4 * 512
        assert built.effective["plugin_config"]["gemm_plugin"] == "auto"
        assert built.effective["trtllm_version"] == "1.2.1"
        assert "input_timing_cache" not in built.effective
        assert built.warnings == ("max_num_tokens: asked for 8192, the engine has 2048",)

    def test_phases_are_timed_and_memory_is_measured(self, place: Place) -> None:
        built = place.build()
        names = [step["name"] for step in built.steps]
        assert names == ["load", "construct", "weights", "compile", "save"]
        assert all(step["seconds"] >= 0 and step["rank"] == 0 for step in built.steps)
        assert built.peak_rss_bytes > 1 << 20
        assert built.seconds > 0
        shown = [progress.what for progress in place.progress]
        assert shown[0] == "loading the checkpoint"
        assert "compiling with TensorRT" in shown
        assert all(p.done <= (p.total or 0) for p in place.progress)

    @pytest.mark.parametrize(
        ("version", "target"), [("1.1.0", "1.1"), ("1.0.0", "1.0"), ("0.16.0", "0.16")]
    )
    def test_older_releases(
        self,
        place: Place,
        configure: Configure,
        checkpoints: Callable[..., Path],
        version: str,
        target: str,
    ) -> None:
        configure(version=version)
        place.checkpoint = checkpoints(version=target)
        built = place.build(SPEC.model_copy(update={"version": version}))
        assert built.effective["trtllm_version"] == version

    def test_options_reach_the_engine(self, place: Place) -> None:
        options = {"fast_build": True, "max_beam_width": 4, "reduce_fusion": True}
        built = place.build(with_options(**options))
        assert built.effective["max_beam_width"] == 4
        assert built.effective["plugin_config"]["reduce_fusion"] is True
        assert "rank0_managed_weights.safetensors" in [file.path for file in built.files]

    def test_a_job_that_the_worker_runs_in_decides_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        monkeypatch.setenv("BUILDER_FORCE_NUM_PROFILES", "1")
        tell = place.work_dir.parent / "tell"
        tell.mkdir()
        (tell / "trtllm-build").write_text("#!/bin/sh\nenv\nexit 7\n")
        (tell / "trtllm-build").chmod(0o755)
        (tell / "python").write_text(f'#!/bin/sh\nPATH="{tell}:$PATH" exec {sys.executable} "$@"\n')
        (tell / "python").chmod(0o755)
        with pytest.raises(failures.TrtllmBuildFailedError):
            place.build(python=tell / "python")
        said = "\n".join(place.log)
        assert "HF_HUB_OFFLINE=1" in said
        for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_JOB_ID", "BUILDER_FORCE_NUM_PROFILES"):
            assert f"{name}=" not in said


class TestTimingCache:
    def test_the_next_build_of_the_same_shapes_is_warm(self, place: Place, tmp_path: Path) -> None:
        assert place.build().cache == "cold"
        first = place.cache.read_bytes()
        place.cache.rename(tmp_path / "shared.cache")
        again = place.build(cache_in=tmp_path / "shared.cache", engine_dir=tmp_path / "again")
        assert again.cache == "warm"
        assert place.cache.read_bytes() == first
        # The build had a copy of its own.
        assert (tmp_path / "shared.cache").read_bytes() == first

    def test_new_shapes_are_added(self, place: Place, tmp_path: Path) -> None:
        place.build()
        before = timing_cache_entries(place.cache)
        shared = place.cache.rename(tmp_path / "shared.cache")
        wider = SPEC.model_copy(update={"max_batch_size": 8})
        again = place.build(wider, cache_in=shared, engine_dir=tmp_path / "again")
        assert again.cache == "partly"
        after = timing_cache_entries(place.cache)
        assert before is not None
        assert after is not None
        assert set(before) < set(after)

    @pytest.mark.parametrize(
        ("how", "warning"), [("rubbish", "could not read"), ("cache-mismatch", "did not use")]
    )
    def test_one_that_is_of_no_use_costs_nothing_but_a_warning(
        self, place: Place, configure: Configure, tmp_path: Path, how: str, warning: str
    ) -> None:
        shared = tmp_path / "shared.cache"
        place.build()
        place.cache.rename(shared)
        if how == "rubbish":
            shared.write_bytes(b"of another TensorRT")
        configure(fault=how)
        built = place.build(cache_in=shared, engine_dir=tmp_path / "again")
        assert built.cache == "cold"
        assert warning in built.warnings[0]


class TestSeveralRanks:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_every_rank_has_its_engine_and_its_tactics(
        self,
        place: Place,
        configure: Configure,
        checkpoints: Callable[..., Path],
        workers: int,
    ) -> None:
        configure(gpus=2)
        place.checkpoint = checkpoints(tp=1, pp=2)
        built = place.build(with_options(workers=workers))
        names = [file.path for file in built.files]
        assert names == ["config.json", "rank0.engine", "rank1.engine"]
        assert built.effective["world_size"] == 2
        assert built.warnings == ()
        entries = " ".join(timing_cache_entries(place.cache) or [])
        # The first rank alone has the embedding, the last one alone the head.
        assert "embedding" in entries
        assert "lm_head" in entries
        assert sum(step["name"] == "compile" for step in built.steps) == 2

    def test_another_trtllm_build_keeps_rank_0s_and_says_so(
        self,
        place: Place,
        checkpoints: Callable[..., Path],
    ) -> None:
        # A release whose builder has other names than the ones known here.
        site = place.work_dir.parent / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            "import tensorrt_llm.builder as b\n"
            "b.Builder.write_cache = staticmethod(b.Builder.save_timing_cache)\n"
            "del b.Builder.save_timing_cache\n"
            "b.Builder.__getattr__ = lambda self, name: self.write_cache\n"
        )
        wrapper = site / "python"
        wrapper.write_text(
            f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{site}" exec {STANDIN_PYTHON} "$@"\n'
        )
        wrapper.chmod(0o755)
        place.checkpoint = checkpoints(tp=2)
        built = place.build(python=wrapper)
        assert len(built.files) == 3
        assert built.warnings[0].startswith("only rank 0's tactics are kept")


def test_probing_says_that_it_is_a_stand_in(configure: Configure, tmp_path: Path) -> None:
    del configure
    found = TrtllmBackend(STANDIN_PYTHON).probe(SPEC, tmp_path)
    assert found.backend_version.endswith("+standin")
    assert found.tensorrt_version == "10.14.1.48"
