"""What an aoti engine needs of a GPU: told, and refused where it cannot be had, before any work."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import write_tiny_model
from prebuilt import H100, toolchain_of
from safetensors import safe_open
from typer.testing import CliRunner

from trtforge.checkpoint import Target, convert
from trtforge.cli import app
from trtforge.engines.aoti.memory import estimate
from trtforge.engines.aoti.memory_rows import RESERVE_BYTES
from trtforge.engines.gpu import GpuModel, LocalGpus
from trtforge.engines.memory import GpuMemoryError, MemoryPlan
from trtforge.spec import EngineSpec
from trtforge.stages import plan as plan_stage

GB = 10**9


def config(tp: int = 1, **changes: Any) -> dict[str, Any]:
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
        "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1},
    } | changes


def engine(batch: int, seq_len: int) -> EngineSpec:
    return EngineSpec(max_batch_size=batch, max_seq_len=seq_len, max_input_len=2)


def part(plan: MemoryPlan, name: str) -> int:
    return next((row.size_bytes for row in plan.rows if row.name == name), 0)


class TestNeeds:
    def test_of_llama_8b_with_16_sequences_of_4096_tokens(self) -> None:
        plan = estimate(config(), engine(16, 4096))
        assert part(plan, "weights") == 16_060_522_496
        assert part(plan, "KV cache") == 16 * 2 * 32 * 8 * 4097 * 128 * 2
        assert part(plan, "reserve") == RESERVE_BYTES == 2 << 30
        assert {row.name for row in plan.rows if row.exact} == {"weights", "KV cache"}
        assert {row.where for row in plan.rows} == {"gpu"}

    @pytest.mark.parametrize("tp", [1, 2])
    def test_weights_are_those_of_each_ranks_file(self, tmp_path: Path, tp: int) -> None:
        convert(write_tiny_model(tmp_path / "model"), tmp_path / "out", Target(tp=tp))
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        needed = part(estimate(written, engine(1, 64)), "weights")
        files = sorted((tmp_path / "out").glob("rank*.safetensors"))
        assert [_tensor_bytes(file) for file in files] == [needed] * tp

    @settings(deadline=None)  # the first example imports PyTorch
    @given(
        kv_heads=st.sampled_from([1, 2, 4, 8]),
        tp=st.sampled_from([1, 2, 4, 8]),
        layers=st.integers(1, 80),
        batch=st.integers(1, 4096),
        seq_len=st.integers(3, 1 << 20),
    )
    def test_caches_are_those_that_a_rank_allocates(
        self, kv_heads: int, tp: int, layers: int, batch: int, seq_len: int
    ) -> None:
        torch = pytest.importorskip("torch")
        from trtforge.engines.aoti.graphs import LayerShape, Limits
        from trtforge.engines.aoti.loaded import Loaded
        from trtforge.engines.aoti.split_graphs import shape_of_rank

        model = config(tp, num_hidden_layers=layers, num_key_value_heads=kv_heads)
        whole = LayerShape.from_checkpoint({**model, "norm_epsilon": 1e-5})
        rank = SimpleNamespace(
            shape=shape_of_rank(whole, tp),
            limits=Limits(batch, 2, seq_len),
            layers=range(layers),
            device=torch.device("meta"),  # sizes only
        )
        caches = Loaded.new_caches(cast("Loaded", rank), batch)
        allocated = sum(t.numel() * t.itemsize for pair in caches for t in pair)
        assert part(estimate(model, engine(batch, seq_len)), "KV cache") == allocated

    def test_ranks_halve_weights_and_caches_and_talk(self) -> None:
        one, two = (estimate(config(tp), engine(16, 4096)) for tp in (1, 2))
        assert (one.ranks, two.ranks) == (1, 2)
        assert 2 * part(two, "KV cache") == part(one, "KV cache")
        assert 0.5 < part(two, "weights") / part(one, "weights") < 0.6  # the embedding is whole
        assert part(one, "communication") == 0 < part(two, "communication")


class TestRefusal:
    @given(
        batch=st.integers(1, 4096),
        seq_len=st.integers(3, 200_000),
        tp=st.sampled_from([1, 2, 4]),
        gpu_bytes=st.integers(8 * GB, 200 * GB),
    )
    def test_what_it_offers_fits_and_one_more_does_not(
        self, batch: int, seq_len: int, tp: int, gpu_bytes: int
    ) -> None:
        def planned(batch: int, seq_len: int) -> MemoryPlan:
            # Longer or shorter than a spec may be: only the sum is looked at.
            limits = engine(1, 3).model_copy(
                update={"max_batch_size": batch, "max_seq_len": seq_len}
            )
            return estimate(config(tp), limits, gpu_bytes=gpu_bytes)

        plan = planned(batch, seq_len)
        assume(not plan.fits)
        assert plan.max_batch_size is not None
        assert plan.max_seq_len is not None
        assert plan.max_batch_size < batch
        assert plan.max_seq_len < seq_len
        assert not planned(plan.max_batch_size + 1, seq_len).fits
        assert not planned(batch, plan.max_seq_len + 1).fits
        with pytest.raises(GpuMemoryError) as refused:
            plan.require_fits()
        for offer, of in (
            (plan.max_batch_size, lambda n: planned(n, seq_len)),
            (plan.max_seq_len, lambda n: planned(batch, n)),
        ):
            assert (f"at most {offer} at" in refused.value.remedy) is (offer > 0)
            assert of(offer).fits or offer == 0

    def test_it_is_one_line_with_field_value_numbers_and_remedy(self) -> None:
        plan = estimate(config(), engine(256, 8192), gpu_bytes=80 * GB)
        with pytest.raises(GpuMemoryError) as refused:
            plan.require_fits()
        assert str(refused.value) == (
            "engine.max_batch_size = 256: with max_seq_len 8192 each GPU needs 294.6 GB (weights "
            "16.1 GB, KV cache 274.9 GB, reserve 2.1 GB, CUDA and libraries 1.5 GB), and has "
            "80.0 GB. Use max_batch_size at most 56 at max_seq_len 8192, or max_seq_len at most "
            "1795 at max_batch_size 256; more tp, or a GPU with more memory, helps too"
        )

    def test_weights_alone_too_large_ask_for_more_ranks(self) -> None:
        plan = estimate(config(), engine(1, 64), gpu_bytes=16 * GB)
        with pytest.raises(GpuMemoryError, match=r"^checkpoint\.tp = 1: .*Split the model over"):
            plan.require_fits()
        estimate(config(tp=2), engine(1, 64), gpu_bytes=16 * GB).require_fits()

    def test_nothing_is_refused_where_the_gpu_is_not_known(self) -> None:
        plan = estimate(config(), engine(4096, 131072))
        plan.require_fits()
        assert (plan.max_batch_size, plan.max_seq_len) == (None, None)


LARGE = {"max_batch_size": 4096, "max_seq_len": 4096}
"""Of the tiny model: 4.3 GB of caches."""


@pytest.fixture
def write_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path / "home"))

    def write(**asked: Any) -> str:
        source = str(write_tiny_model(tmp_path / "model"))
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({"model": {"source": source}, "engine": asked}))
        return str(path)

    return write


class TestPlanCommand:
    """`trtforge plan` on a machine whose PyTorch and NVML are said to have a GPU."""

    @pytest.fixture
    def run(
        self, s3: Any, write_spec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Any]:
        for name, value in {
            "TRTFORGE_S3_ENDPOINT_URL": s3.endpoint_url,
            "TRTFORGE_S3_BUCKET": s3.bucket,
            "TRTFORGE_S3_ACCESS_KEY_ID": s3.access_key_id,
            "TRTFORGE_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        }.items():
            monkeypatch.setenv(name, value)

        def run_on(gpu_bytes: int | None, *words: str) -> Any:
            gpus = LocalGpus((GpuModel(H100, "9.0", gpu_bytes),), "580.82.07")
            monkeypatch.setattr(plan_stage, "find_gpus", lambda: gpus)
            found = toolchain_of(H100)
            monkeypatch.setattr(plan_stage, "probe_toolchain", lambda *_: found)
            return CliRunner().invoke(app, ["plan", write_spec(**LARGE), *words])

        return run_on

    def test_what_does_not_fit_is_refused_before_anything_is_pulled(
        self, run: Callable[..., Any], s3: Any
    ) -> None:
        refused = run(6 * GB)
        assert isinstance(refused.exception, GpuMemoryError), refused.exception
        assert refused.exception.exit_code == 2
        assert s3.client.list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 0

    def test_what_fits_comes_with_its_table(self, run: Callable[..., Any]) -> None:
        shown = run(9 * GB)
        assert shown.exit_code == 0, shown.exception
        assert "GPU    7.9 GB needed, 9.0 GB there" in shown.stdout
        assert "Fits: max_batch_size up to" in shown.stdout
        # What is not counted is not told of.
        assert "disk" not in shown.stdout
        told = json.loads(run(9 * GB, "--json").stdout)["memory"]
        assert told["fits"] is True
        assert told["bytes"]["gpu"]["available"] == 9 * GB

    def test_a_gpu_that_does_not_tell_its_memory_refuses_nothing(
        self, run: Callable[..., Any]
    ) -> None:
        shown = run(None)
        assert shown.exit_code == 0, shown.exception
        assert "not known here" in shown.stdout


class TestMemoryCommand:
    def test_it_counts_for_the_backend_of_the_spec(self, write_spec: Callable[..., str]) -> None:
        spec = write_spec(**LARGE)
        assert CliRunner().invoke(app, ["memory", spec, "--gpu-gb", "8"]).exit_code == 0
        refused = CliRunner().invoke(app, ["memory", spec, "--gpu-gb", "6", "--json"])
        assert isinstance(refused.exception, GpuMemoryError)
        assert json.loads(refused.stdout)["fits"] is False

    def test_an_engine_for_a_cpu_has_nothing_to_count(self, write_spec: Callable[..., str]) -> None:
        spec = write_spec(**LARGE, options={"device": "cpu"})
        shown = CliRunner().invoke(app, ["memory", spec, "--gpu-gb", "1"])
        assert shown.exit_code == 0, shown.exception
        assert "An engine for a CPU takes no GPU's memory" in shown.stdout


def _tensor_bytes(file: Path) -> int:
    with safe_open(file, "numpy") as tensors:
        return sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
