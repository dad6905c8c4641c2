"""The stages pull, convert and compile with trtllm, on a real store, in the stand-in toolchain."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standin.environment import STANDIN_PYTHON, standin_environment
from standin_build import FIXTURES

from trtforge.card import engine_card
from trtforge.engines.standin import ALLOW_VARIABLE, StandinError, refuse_standin
from trtforge.engines.trtllm import build_failures as failures
from trtforge.engines.trtllm.options import OptionUnknownError
from trtforge.engines.trtllm.probe import TrtllmPythonUnsetError
from trtforge.errors import InputError
from trtforge.files import FileRef, files_digest
from trtforge.spec import BuildSpec
from trtforge.stages.compile import compile_engine, probe_toolchain
from trtforge.stages.convert import convert as convert_stage
from trtforge.stages.publish import publish
from trtforge.stages.pull import pull
from trtforge.stages.stage import Workshop
from trtforge.store import Manifest, ManifestCore, ModelIdentity, Parents, Store

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


@pytest.fixture
def shop(s3: Any, tmp_path: Path, configure: Configure) -> Workshop:
    del configure
    store = Store.from_settings(
        endpoint_url=s3.endpoint_url,
        bucket=s3.bucket,
        access_key_id=s3.access_key_id,
        secret_access_key=SecretStr(s3.secret_access_key),
        cache_dir=tmp_path / "cache",
    )
    return Workshop(
        store=store,
        work_root=tmp_path / "work-root",
        python=Path(sys.executable),
        trtllm_python=STANDIN_PYTHON,
    )


def build_spec(**engine: Any) -> BuildSpec:
    return BuildSpec.model_validate(
        {
            "model": {"source": str(FIXTURES / "llama31"), "name": "llama31"},
            "engine": {
                "backend": "trtllm",
                "max_input_len": 64,
                "max_seq_len": 128,
                "max_num_tokens": 256,
                **engine,
            },
            "benchmark": {"workload": {"input_tokens": 8, "output_tokens": 4}},
            "gates": {"new_tokens": 4},
            "publish": {"max_output_len": 8},
        }
    )


class TestStages:
    @staticmethod
    def checkpoint(shop: Workshop, spec: BuildSpec) -> tuple[FileRef, ...]:
        model, _ = pull(shop, spec)
        return convert_stage(shop, spec, model).result.outputs

    def test_pull_convert_and_compile_and_then_it_is_refused(
        self, shop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = build_spec()
        toolchain = probe_toolchain(shop, spec)
        assert toolchain.backend_version == "1.2.1+standin"
        assert toolchain.gpu_name == "Stand-in GPU"
        checkpoint = self.checkpoint(shop, spec)
        made = compile_engine(shop, spec, checkpoint, toolchain)
        paths = sorted(file.path for file in made.result.outputs)
        assert paths == ["config.json", "model.cache", "rank0.engine"]
        facts: dict[str, Any] = made.result.facts
        assert facts["effective"]["max_num_tokens"] == 256
        assert facts["command"][0] == "trtllm-build"
        assert compile_engine(shop, spec, checkpoint, toolchain).hit
        # Another engine of the same shapes finds the timing cache that this one left.
        other = build_spec(options={"max_beam_width": 2})
        second = compile_engine(shop, other, checkpoint, toolchain)
        assert second.result.facts["cache"] == "warm"

        manifest = Manifest.of(
            ManifestCore(
                model=ModelIdentity(
                    name="llama31", source="x", revision=None, content_digest="1" * 64, licence=None
                ),
                spec=spec.model_dump(mode="json"),
                config=facts["effective"],
                toolchain=toolchain.to_json(),
                files=made.result.outputs,
                parents=Parents(source="2" * 64, checkpoint=files_digest(checkpoint)),
                gates={},
            ),
            timings={},
        )
        with pytest.raises(StandinError, match="stand-in"):
            publish(shop, spec, manifest, toolchain)
        with pytest.raises(InputError):
            shop.store.get_manifest(manifest.engine_id)
        monkeypatch.setenv(ALLOW_VARIABLE, "1")
        refuse_standin(toolchain)
        card = engine_card(manifest, location="s3://x")
        assert "STAND-IN" in card.split("\n\n")[1]

    def test_a_failed_compile_keeps_its_log_and_nothing_else(
        self, shop: Workshop, configure: Configure
    ) -> None:
        spec = build_spec()
        toolchain = probe_toolchain(shop, spec)
        checkpoint = self.checkpoint(shop, spec)
        configure(fault="gpu-oom")
        with pytest.raises(failures.GpuMemoryError) as caught:
            compile_engine(shop, spec, checkpoint, toolchain)
        named = Path(caught.value.remedy.rpartition("the log is ")[2])
        assert named.is_file()
        assert "210571452800" in named.read_text()
        left = [path.name for path in shop.work_root.iterdir() if path.is_dir()]
        assert left == ["logs"]
        configure(fault="")
        assert not compile_engine(shop, spec, checkpoint, toolchain).hit

    def test_the_wrong_release_is_refused_by_the_probe(
        self, shop: Workshop, configure: Configure
    ) -> None:
        configure(version="1.0.0")
        with pytest.raises(InputError, match=r"1\.0\.0"):
            probe_toolchain(shop, build_spec())

    def test_options_are_refused_before_the_probe(self, shop: Workshop) -> None:
        blind = replace(shop, trtllm_python=None)
        with pytest.raises(OptionUnknownError):
            probe_toolchain(blind, build_spec(options={"nothing": 1}))
        with pytest.raises(TrtllmPythonUnsetError, match="trtforge doctor"):
            probe_toolchain(blind, build_spec())
