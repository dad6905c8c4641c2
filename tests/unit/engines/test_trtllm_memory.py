"""What an engine needs of a GPU: exact where it can be, and said to be an estimate where not."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from models import write_tiny_model
from typer.testing import CliRunner

from trtforge.checkpoint.config_keys import ConfigValueError
from trtforge.cli import app
from trtforge.engines.gpu import GpuModel, LocalGpus
from trtforge.engines.host_memory import available_memory_bytes
from trtforge.engines.memory import (
    EngineDiskError,
    GpuMemoryError,
    HostMemoryError,
    MemoryPlan,
)
from trtforge.engines.trtllm.attention_workspace import (
    Attention,
    context_bytes,
    workspace_bytes,
)
from trtforge.engines.trtllm.memory import estimate
from trtforge.sources import parse_source, resolve
from trtforge.spec import BuildSpec, parse_spec
from trtforge.stages import plan as plan_stage
from trtforge.stages.memory import plan_memory

GB = 10**9
H100 = {"gpu_bytes": 80 * GB, "compute_capability": "9.0"}
CHECKPOINTS = Path(__file__).parents[2] / "fixtures" / "trtllm-checkpoints" / "1.2"
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class Asked:
    """The limits of an engine."""

    max_batch_size: int
    max_seq_len: int
    max_input_len: int = 1024
    max_num_tokens: int = 8192
    options: dict[str, Any] = field(default_factory=dict)


UPSTREAM_DEFAULTS = Asked(max_batch_size=2048, max_seq_len=131072)


def config(tp: int = 1, pp: int = 1, **changes: Any) -> dict[str, Any]:
    """Llama-3.1-8B's."""
    return {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_size": 128,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    } | changes


def part(plan: MemoryPlan, name: str) -> int:
    return next(row.size_bytes for row in plan.rows if row.name == name)


class TestPreflight:
    def test_upstreams_default_limits_are_refused_on_80_gb_with_the_numbers(self) -> None:
        plan = estimate(config(), UPSTREAM_DEFAULTS, **H100)
        assert not plan.fits
        assert part(plan, "weights") == 16_060_522_496
        assert part(plan, "KV cache") == 2048 * 131072 * 131072
        with pytest.raises(GpuMemoryError) as refused:
            plan.require_fits()
        line = str(refused.value)
        assert line.startswith("engine.max_batch_size = 2048: with max_seq_len 131072 each GPU")
        for number in ("weights 16.1 GB", "KV cache 35,184.4 GB", "has 80.0 GB"):
            assert number in line
        assert f"max_batch_size at most {plan.max_batch_size} at max_seq_len 131072" in line
        assert f"max_seq_len at most {plan.max_seq_len} at max_batch_size 2048" in line

    def test_batch_16_of_4096_tokens_passes(self) -> None:
        plan = estimate(config(), Asked(16, 4096), **H100)
        plan.require_fits()
        assert plan.fits
        assert part(plan, "KV cache") == 8_589_934_592
        assert 25 * GB < plan.needed_bytes("gpu") < 30 * GB

    def test_the_limits_it_offers_are_the_largest_that_fit(self) -> None:
        plan = estimate(config(), UPSTREAM_DEFAULTS, **H100)
        assert plan.max_batch_size is not None
        assert plan.max_seq_len is not None
        for more, fits in ((0, True), (1, False)):
            batch = Asked(plan.max_batch_size + more, UPSTREAM_DEFAULTS.max_seq_len)
            length = Asked(UPSTREAM_DEFAULTS.max_batch_size, plan.max_seq_len + more)
            assert estimate(config(), batch, **H100).fits is fits
            assert estimate(config(), length, **H100).fits is fits

    def test_weights_alone_too_large_ask_for_another_split(self) -> None:
        plan = estimate(config(), Asked(1, 128), gpu_bytes=12 * GB)
        assert (plan.max_batch_size, plan.max_seq_len) == (0, 0)
        with pytest.raises(GpuMemoryError, match=r"^checkpoint\.tp = 1: .*Split the model over"):
            plan.require_fits()
        assert estimate(config(tp=2), Asked(1, 128), gpu_bytes=12 * GB).fits

    def test_nothing_is_refused_where_nothing_is_known(self) -> None:
        plan = estimate(config(), UPSTREAM_DEFAULTS)
        plan.require_fits()
        assert plan.max_batch_size is None

    def test_host_and_disk_are_looked_at_too(self) -> None:
        asked = Asked(1, 128)
        with pytest.raises(HostMemoryError, match=r"about 35\.1 GB \(checkpoint in memory 16\.1"):
            estimate(config(), asked, **H100, host_bytes=30 * GB).require_fits()
        with pytest.raises(EngineDiskError, match=r"about 32\.1 GB .*TRTFORGE_HOME"):
            estimate(config(), asked, **H100, disk_bytes=30 * GB).require_fits()
        assert estimate(config(), asked, **H100, host_bytes=36 * GB, disk_bytes=33 * GB).fits

    def test_ranks_built_at_once_need_the_host_that_many_times(self) -> None:
        one = estimate(config(tp=4), Asked(1, 128))
        all_at_once = estimate(config(tp=4), Asked(1, 128), build_workers=8)
        assert all_at_once.needed_bytes("host") == 4 * one.needed_bytes("host")


class TestWeights:
    @pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*.json")), ids=lambda path: path.stem)
    def test_are_those_of_the_files_that_upstream_writes(self, path: Path) -> None:
        written = json.loads(path.read_text())
        ranks = [_tensor_bytes(rank) for rank in written["ranks"].values()]
        plan = estimate(written["config"], Asked(1, 128))
        assert part(plan, "checkpoint") == sum(ranks)
        assert part(plan, "checkpoint in memory") == max(ranks)
        assert next(row for row in plan.rows if row.name == "weights").exact

    def test_of_another_architecture_are_an_estimate(self) -> None:
        for changes in (
            {"architecture": "FalconForCausalLM"},
            {"quantization": {"quant_algo": "FP8"}},
            {"moe": {"num_experts": 8}},
        ):
            rows = estimate(config(**changes), Asked(1, 128)).rows
            assert [row.exact for row in rows if row.name == "weights"] == [False]

    def test_experts_multiply_the_mlp_and_quantisation_halves_the_layers(self) -> None:
        dense = part(estimate(config(), Asked(1, 128)), "weights")
        mlp = 3 * 4096 * 14336 * 32 * 2
        experts = estimate(config(moe={"num_experts": 8}), Asked(1, 128))
        assert part(experts, "weights") == dense + 7 * mlp
        quantised = estimate(config(quantization={"quant_algo": "FP8"}), Asked(1, 128))
        embeddings = 2 * 128256 * 4096 * 2
        assert part(quantised, "weights") == pytest.approx(
            embeddings + (dense - embeddings) / 2, rel=1e-3
        )

    def test_a_config_without_the_numbers_is_refused(self) -> None:
        without = {key: value for key, value in config().items() if key != "head_size"}
        with pytest.raises(ConfigValueError, match="head_size"):
            estimate(without, Asked(1, 128))


class TestKvCache:
    @given(
        kv_heads=st.sampled_from([1, 2, 4, 8]),
        tp=st.sampled_from([1, 2, 4, 8, 16]),
        pp=st.integers(1, 8),
        batch=st.integers(1, 64),
        length=st.integers(1, 5000),
        beams=st.integers(1, 3),
        block=st.sampled_from([32, 64, 128]),
    )
    def test_is_two_numbers_for_each_token_layer_and_head(
        self, kv_heads: int, tp: int, pp: int, batch: int, length: int, beams: int, block: int
    ) -> None:
        options = {"tokens_per_block": block, "max_beam_width": beams}
        shape = config(tp=tp, pp=pp, num_key_value_heads=kv_heads, num_hidden_layers=30)
        plan = estimate(shape, Asked(batch, length, options=options))
        blocks = (length + block - 1) // block
        # The first 30 % pp stages have a layer more than the others; every stage is looked at.
        stage = plan.rank // tp
        layers = 30 // pp + (1 if stage < 30 % pp else 0)
        heads = kv_heads // tp if kv_heads >= tp else 1
        assert (
            part(plan, "KV cache") == 2 * layers * heads * 128 * 2 * blocks * block * batch * beams
        )

    def test_heads_fewer_than_ranks_are_held_several_times(self) -> None:
        whole, *split = (
            part(estimate(config(tp=tp), Asked(4, 1024)), "KV cache") for tp in (1, 2, 4, 8, 16, 32)
        )
        assert [tp * each // whole for tp, each in zip((2, 4, 8, 16, 32), split, strict=True)] == [
            1,
            1,
            1,
            2,
            4,
        ]

    def test_sequences_are_rounded_up_to_whole_blocks_of_the_release(self) -> None:
        token = 131072
        for release, block in (("1.2", 32), ("0.16", 64)):
            plan = estimate(config(), Asked(3, 65), release=release)
            assert part(plan, "KV cache") == 3 * (65 // block + 1) * block * token
        continuous = Asked(3, 65, options={"kv_cache_type": "CONTINUOUS"})
        assert part(estimate(config(), continuous), "KV cache") == 3 * 65 * token

    def test_fp8_takes_half_and_none_takes_nothing(self) -> None:
        full = part(estimate(config(), Asked(2, 640)), "KV cache")
        fp8 = config(quantization={"kv_cache_quant_algo": "FP8"})
        assert part(estimate(fp8, Asked(2, 640)), "KV cache") * 2 == full
        disabled = Asked(2, 640, options={"kv_cache_type": "disabled"})
        assert part(estimate(config(), disabled), "KV cache") == 0

    def test_fewer_tokens_than_all_at_full_length_can_be_asked_for(self) -> None:
        plan = estimate(config(), UPSTREAM_DEFAULTS, **H100, kv_tokens=65536)
        assert part(plan, "KV cache") == 65536 * 131072
        assert plan.fits


class TestEstimates:
    def test_scratch_of_unfused_attention_is_what_issue_2688_was_refused_for(self) -> None:
        # Llama-3.1-8B, tp 2, upstream's defaults, on a GPU of 46 GB without fused attention.
        attention = Attention(heads=16, kv_heads=4, head_size=128, fused=False)
        asked = context_bytes(attention, batch=2048, input_len=1024, tokens=8192)
        assert asked == 210_571_452_800
        plan = estimate(config(tp=2), UPSTREAM_DEFAULTS, compute_capability="7.5")
        assert part(plan, "attention workspace") == asked

    def test_fused_attention_needs_no_scratch_that_grows_with_the_square(self) -> None:
        fused = Attention(heads=32, kv_heads=8, head_size=128)
        sizes = [
            workspace_bytes(fused, batch=16, input_len=n, tokens=8192, seq_len=n)
            for n in (1024, 4096)
        ]
        assert sizes[0] == sizes[1] < 0.2 * GB
        off = Asked(16, 4096, options={"context_fmha": "disable"})
        assert part(estimate(config(), off), "attention workspace") > 3 * GB

    @pytest.mark.parametrize(
        ("shape", "asked", "capability", "context_mib", "buffers_gib"),
        [
            # Llama-2-7B, FP8, H100: upstream's benchmarks/python README of 0.12.
            (
                {
                    "vocab_size": 32000,
                    "num_key_value_heads": 32,
                    "intermediate_size": 11008,
                    "dtype": "float16",
                    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
                },
                Asked(4096, 4098, 2048, options={"tokens_per_block": 64}),
                "9.0",
                928.77,
                1.14 + 4.35,
            ),
            # DeepSeek-R1-Distill-Qwen-1.5B at the default limits of 0.17; its buffers are not told.
            (
                {
                    "architecture": "Qwen2ForCausalLM",
                    "qwen_type": "qwen2",
                    "vocab_size": 151936,
                    "hidden_size": 1536,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 12,
                    "num_key_value_heads": 2,
                    "intermediate_size": 8960,
                    "dtype": "float16",
                },
                UPSTREAM_DEFAULTS,
                "8.9",
                921.51,
                None,
            ),
        ],
        ids=["llama-2-7b-fp8", "qwen-1.5b"],
    )
    def test_lie_above_what_upstream_printed_and_not_by_far(
        self,
        shape: dict[str, Any],
        asked: Asked,
        capability: str,
        context_mib: float,
        buffers_gib: float | None,
    ) -> None:
        plan = estimate(config(**shape), asked, compute_capability=capability)
        context = part(plan, "activations") + part(plan, "attention workspace")
        assert context_mib < context / 2**20 < 1.5 * context_mib
        if buffers_gib is not None:
            buffers = part(plan, "runtime and decoder buffers") / 2**30
            assert buffers_gib < buffers < 1.2 * buffers_gib

    def test_each_part_says_how_and_whether_it_is_exact(self) -> None:
        plan = estimate(config(tp=2), Asked(4, 512, options={"gather_context_logits": True}))
        exact = {row.name for row in plan.rows if row.exact}
        assert exact == {"weights", "KV cache", "checkpoint"}
        assert all(row.formula for row in plan.rows)
        names = {row.name for row in plan.rows}
        assert {"communication", "context logits"} <= names
        plain = {row.name for row in estimate(config(), Asked(4, 512)).rows}
        assert not {"communication", "context logits"} & plain

    @given(batch=st.integers(1, 512), length=st.integers(1, 8192), tokens=st.integers(1, 16384))
    def test_more_of_anything_never_needs_less(self, batch: int, length: int, tokens: int) -> None:
        def needed(batch: int, length: int, tokens: int) -> int:
            asked = Asked(batch, length, max_num_tokens=tokens)
            return estimate(config(), asked).needed_bytes("gpu")

        least = needed(batch, length, tokens)
        assert least <= needed(batch + 1, length, tokens)
        assert least <= needed(batch, length + 1, tokens)
        assert least <= needed(batch, length, tokens + 1)


class TestPlanStage:
    def test_it_reads_the_models_config_and_nothing_else(self, tmp_path: Path) -> None:
        model = write_tiny_model(tmp_path / "model")
        plan = self.plan(self.spec(model), tmp_path, gpus=self.gpus(24 * GB))
        assert plan.fits
        assert plan.gpu_bytes == 24 * GB
        assert plan.host_bytes
        assert part(plan, "KV cache") == 2 * 2 * 2 * 16 * 2 * 4 * 512

    def test_a_gpu_elsewhere_says_nothing_of_this_machines_memory(self, tmp_path: Path) -> None:
        model = write_tiny_model(tmp_path / "model")
        plan = self.plan(self.spec(model), tmp_path, gpus=LocalGpus(), gpu_bytes=80 * GB)
        assert (plan.gpu_bytes, plan.host_bytes, plan.disk_bytes) == (80 * GB, None, None)

    def test_what_only_upstreams_converter_knows_is_estimated(self, tmp_path: Path) -> None:
        model = write_tiny_model(tmp_path / "model")
        hf_config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(
            json.dumps(hf_config | {"architectures": ["PhiForCausalLM"]})
        )
        spec = self.spec(model, checkpoint={"tool": "upstream"})
        plan = self.plan(spec, tmp_path, gpus=self.gpus(24 * GB))
        assert [row.exact for row in plan.rows if row.name == "weights"] == [False]

        (model / "config.json").write_text('{"architectures": ["PhiForCausalLM"]}')
        resolved = resolve(parse_source(spec.model.source))
        options: dict[str, Any] = {"token": None, "gpus": LocalGpus(), "work_root": tmp_path}
        assert plan_memory(spec, resolved, **options) is None

    @staticmethod
    def spec(model: Path, **parts: Any) -> BuildSpec:
        engine = {"backend": "trtllm"}
        return parse_spec({"model": {"source": str(model)}, "engine": engine, **parts})

    @staticmethod
    def gpus(memory_bytes: int) -> LocalGpus:
        return LocalGpus((GpuModel("NVIDIA L4", "8.9", memory_bytes),), "580.82.07")

    @staticmethod
    def plan(spec: BuildSpec, tmp_path: Path, **options: Any) -> MemoryPlan:
        resolved = resolve(parse_source(spec.model.source))
        made = plan_memory(spec, resolved, token=None, work_root=tmp_path / "work", **options)
        assert made is not None
        return made


class TestCommand:
    def test_it_shows_what_each_part_needs_and_ends_with_2_when_it_does_not_fit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path / "home"))
        spec = tmp_path / "spec.yaml"
        model = write_tiny_model(tmp_path / "model")
        asked = {"model": {"source": str(model)}, "engine": {"backend": "trtllm"}}
        spec.write_text(yaml.safe_dump(asked))

        shown = CliRunner().invoke(app, ["memory", str(spec), "--gpu-gb", "80"])
        assert shown.exit_code == 0, shown.exception
        for text in ("KV cache", "exact", "estimate", "Fits: max_batch_size up to"):
            assert text in shown.stdout

        printed = CliRunner().invoke(app, ["memory", str(spec), "--gpu-gb", "80", "--json"])
        assert json.loads(printed.stdout)["fits"] is True

        refused = CliRunner().invoke(app, ["memory", str(spec), "--gpu-gb", "1"])
        assert isinstance(refused.exception, GpuMemoryError)
        assert refused.exception.exit_code == 2
        assert "CUDA and libraries" in refused.stdout


class TestPlanCommand:
    """`trtforge plan` with the stand-in toolchain; NVML is told of its GPU here."""

    @pytest.fixture
    def run(self, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        spec = {
            "model": {"source": str(write_tiny_model(tmp_path / "model"))},
            "engine": {"backend": "trtllm"},
        }
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        for name, value in {
            "TRTFORGE_HOME": str(tmp_path / "home"),
            "TRTFORGE_S3_ENDPOINT_URL": s3.endpoint_url,
            "TRTFORGE_S3_BUCKET": s3.bucket,
            "TRTFORGE_S3_ACCESS_KEY_ID": s3.access_key_id,
            "TRTFORGE_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
            "TRTFORGE_TRTLLM_PYTHON": str(Path(__file__).parents[2] / "standin" / "bin" / "python"),
            "TRTFORGE_STANDIN_PYTHON": sys.executable,
        }.items():
            monkeypatch.setenv(name, value)

        def run_with(gpu_bytes: int, *words: str) -> Any:
            gpus = LocalGpus((GpuModel("Stand-in GPU", "9.0", gpu_bytes),), "580.82.07")
            monkeypatch.setattr(plan_stage, "find_gpus", lambda: gpus)
            return CliRunner().invoke(app, ["plan", str(tmp_path / "spec.yaml"), *words])

        return run_with

    def test_an_engine_that_does_not_fit_is_refused_before_anything_is_pulled(
        self, run: Callable[..., Any], s3: Any
    ) -> None:
        refused = run(GB)
        assert isinstance(refused.exception, GpuMemoryError), refused.exception
        assert s3.client.list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 0

    def test_one_that_fits_comes_with_its_table(self, run: Callable[..., Any]) -> None:
        told = json.loads(run(80 * GB, "--json").stdout)
        assert told["memory"]["fits"] is True
        assert told["memory"]["bytes"]["gpu"]["available"] == 80 * GB
        shown = run(80 * GB)
        assert shown.exit_code == 0, shown.exception
        assert "KV cache" in shown.stdout
        assert "Fits: max_batch_size up to" in shown.stdout


class TestHostMemory:
    def test_the_limit_of_a_container_counts(self, tmp_path: Path) -> None:
        machine = available_memory_bytes(tmp_path)
        assert machine > 0
        (tmp_path / "memory.current").write_text("700\n")
        (tmp_path / "memory.max").write_text("max\n")
        assert available_memory_bytes(tmp_path) > 1000
        (tmp_path / "memory.max").write_text("1000\n")
        (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 400\n")
        assert available_memory_bytes(tmp_path) == 700


def _tensor_bytes(rank: Any) -> int:
    total = 0
    for tensor in rank.values():
        count = 1
        for extent in tensor["shape"]:
            count *= extent
        total += count * SIZES[tensor["dtype"]]
    return total
