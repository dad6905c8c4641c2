"""The aoti backend on an NVIDIA GPU, against the original model on the same GPU.

Talks to the drivers directly, so that it also runs where only a toolchain is installed:
`pytest --noconftest tests/gpu`.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trtforge.canonical import digest
from trtforge.checkpoint import convert
from trtforge.engines.driver_process import run_driver
from trtforge.gates.correctness import correctness_jobs, judge

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]

_MODEL = Path(__file__).parents[1] / "fixtures" / "hf-models" / "llama_tied"
_PROMPTS = [[5, 9, 31, 200, 7], [1, 2, 3], [250, 17, 99, 4, 4, 8, 60]]


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def checkpoint_dir(work_dir: Path) -> Path:
    convert(_MODEL, work_dir / "checkpoint")
    return work_dir / "checkpoint"


@pytest.fixture(scope="module", params=["graphs", "kernels"])
def engine_dir(work_dir: Path, checkpoint_dir: Path, request: pytest.FixtureRequest) -> Path:
    assert checkpoint_dir.is_dir()
    _build(work_dir, request.param, None, request.param)
    return work_dir / str(request.param)


def _build(work_dir: Path, name: str, cache_in: Path | None, decode: str) -> dict[str, Any]:
    toolchain = run_driver(
        "trtforge.engines.aoti.probe_driver", {"device": "cuda"}, work_dir=work_dir, timeout_s=120
    )
    return run_driver(
        "trtforge.engines.aoti.build_driver",
        {
            "checkpoint_dir": str(work_dir / "checkpoint"),
            "engine_dir": str(work_dir / name),
            "cache_in": str(cache_in) if cache_in else None,
            "cache_out": str(work_dir / f"{name}.cache"),
            "device": "cuda",
            "decode": decode,
            "toolchain_key": digest({"gpu": toolchain["gpu_name"]}),
            "limits": {
                "max_batch_size": 3,
                "max_input_len": 24,
                "max_seq_len": 48,
                "max_num_tokens": 48,
            },
        },
        work_dir=work_dir,
        timeout_s=600,
    )


def test_answers_are_the_original_models(engine_dir: Path, work_dir: Path) -> None:
    engine_jobs, reference_jobs = correctness_jobs(_PROMPTS, 16, 3)
    outputs = {}
    for who, module, extra, jobs in (
        ("engine", "aoti", {"engine_dir": str(engine_dir)}, engine_jobs),
        (
            "eager",
            "reference",
            {"model_dir": str(_MODEL), "dtype": "bfloat16", "device": "cuda"},
            reference_jobs,
        ),
    ):
        (work_dir / f"{who}-logits").mkdir(exist_ok=True)
        result = run_driver(
            f"trtforge.engines.{module}.run_driver",
            {"threads": 0, "jobs": jobs, "logits_dir": str(work_dir / f"{who}-logits"), **extra},
            work_dir=work_dir,
            timeout_s=600,
        )
        outputs[who] = {output["id"]: output for output in result["outputs"]}
    verdicts = judge(
        engine_jobs,
        outputs["engine"],
        outputs["eager"],
        engine_logits_dir=work_dir / "engine-logits",
        reference_logits_dir=work_dir / "eager-logits",
        rounding_factor=2.0,
    )
    assert len(verdicts) == 6
    assert [verdict.reason for verdict in verdicts] == [""] * 6


def test_a_second_build_reuses_the_first_ones_kernels(engine_dir: Path, work_dir: Path) -> None:
    decode = engine_dir.name
    again = _build(work_dir, f"{decode}-again", engine_dir.with_suffix(".cache"), decode)
    assert all(graph["cached"] for graph in again["graphs"])


def test_a_layer_of_a_step_is_five_kernels_and_copies_nothing(engine_dir: Path) -> None:
    if engine_dir.name != "kernels":
        pytest.skip("is about the kernels")
    with zipfile.ZipFile(engine_dir.with_suffix(".cache")) as cache:
        entries = json.loads(cache.read("index.json"))["entries"]
        (key,) = (key for key, entry in entries.items() if entry["graph"] == "step_3")
        (source,) = (name for name in entries[key]["files"] if name.endswith(".wrapper.cpp"))
        text = cache.read(f"{key}/{source}").decode()
    assert re.findall(r"^ +call_([a-z_]+)_\d+\(", text, re.MULTILINE) == [
        *("rows_times_weights", "attend_to_cache"),
        *["rows_times_weights"] * 3,
    ]


def test_the_toolchain_is_what_cuda_says_of_this_gpu(work_dir: Path) -> None:
    toolchain = run_driver(
        "trtforge.engines.aoti.probe_driver", {"device": "cuda"}, work_dir=work_dir, timeout_s=120
    )
    major, minor = torch.cuda.get_device_capability()
    assert toolchain["gpu_name"] == torch.cuda.get_device_name()
    assert toolchain["compute_capability"] == f"{major}.{minor}"
    assert toolchain["backend_version"] == torch.__version__
    assert toolchain["cuda_version"] == torch.version.cuda
    assert toolchain["driver_version"]
