"""An aoti engine of two ranks on NVIDIA GPUs: on one, as two threads, and on two, through NCCL.

Like `test_aoti_cuda`: `pytest --noconftest tests/gpu`.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trtforge.canonical import digest
from trtforge.checkpoint import Target, convert
from trtforge.engines.driver_process import run_driver
from trtforge.engines.jobs import perform
from trtforge.gates.correctness import correctness_jobs, judge

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]

_MODEL = Path(__file__).parents[1] / "fixtures" / "hf-models" / "llama_tied"
_PROMPTS = [[5, 9, 31, 200, 7], [1, 2, 3], [250, 17, 99, 4, 4, 8, 60]]
_ENGINE_JOBS, _REFERENCE_JOBS = correctness_jobs(_PROMPTS, 16, 3)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def engine_dir(work_dir: Path) -> Path:
    convert(_MODEL, work_dir / "checkpoint", target=Target(tp=2))
    toolchain = run_driver(
        "trtforge.engines.aoti.probe_driver", {"device": "cuda"}, work_dir=work_dir, timeout_s=120
    )
    run_driver(
        "trtforge.engines.aoti.build_driver",
        {
            "checkpoint_dir": str(work_dir / "checkpoint"),
            "engine_dir": str(work_dir / "engine"),
            "cache_in": None,
            "cache_out": str(work_dir / "model.cache"),
            "device": "cuda",
            "decode": "graphs",
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
    return work_dir / "engine"


@pytest.fixture(scope="module")
def eager(work_dir: Path) -> list[dict[str, Any]]:
    (work_dir / "eager-logits").mkdir()
    result = run_driver(
        "trtforge.engines.reference.run_driver",
        {
            "model_dir": str(_MODEL),
            "dtype": "bfloat16",
            "device": "cuda",
            "threads": 0,
            "jobs": _REFERENCE_JOBS,
            "logits_dir": str(work_dir / "eager-logits"),
        },
        work_dir=work_dir,
        timeout_s=600,
    )
    outputs: list[dict[str, Any]] = result["outputs"]
    return outputs


class Together:
    """What NCCL is to ranks on GPUs of their own, for threads that share one and its stream."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=120)
        self._said: list[Any] = [None] * ranks

    def exchange(self, rank: int, tensor: Any) -> list[Any]:
        self._said[rank] = tensor.clone()
        self._barrier.wait()
        heard = list(self._said)
        self._barrier.wait()
        return heard


@dataclass(frozen=True)
class Member:
    """One of them, as `trtforge.engines.aoti.rank_group.RankGroup`."""

    rank: int
    ranks: int
    together: Together

    def add(self, part: Any) -> Any:
        return sum(self.together.exchange(self.rank, part))

    def joined(self, logits: Any) -> Any:
        return torch.cat(self.together.exchange(self.rank, logits), -1)

    def agreed(self, choose: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda logits: self.together.exchange(self.rank, choose(logits))[0]


def test_two_ranks_on_one_gpu_answer_as_the_original_does(
    engine_dir: Path,
    eager: list[dict[str, Any]],
    work_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trtforge.engines.aoti import loaded
    from trtforge.engines.aoti.runtime import Engine

    monkeypatch.setattr(loaded, "_device", lambda *_: torch.device("cuda", 0))
    together = Together(2)

    def run(rank: int) -> list[dict[str, Any]]:
        group: Any = Member(rank, 2, together)
        engine = Engine(engine_dir, 0, group)
        (tmp_path / str(rank)).mkdir()
        return perform(
            _ENGINE_JOBS,
            lambda job, keep: engine.generate(
                job["prompts"], job["max_new_tokens"], keep_logits=keep
            ),
            tmp_path / str(rank),
            lambda *_: None,
        )

    with ThreadPoolExecutor(2) as pool:
        outputs, others = pool.map(run, range(2))
    assert [o["tokens"] for o in outputs] == [o["tokens"] for o in others]
    _passes(outputs, tmp_path / "0", eager, work_dir)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_answer_as_the_original_does(
    engine_dir: Path, eager: list[dict[str, Any]], work_dir: Path, tmp_path: Path
) -> None:
    result = run_driver(
        "trtforge.engines.aoti.run_driver",
        {
            "engine_dir": str(engine_dir),
            "threads": 0,
            "jobs": _ENGINE_JOBS,
            "logits_dir": str(tmp_path),
        },
        work_dir=work_dir,
        timeout_s=600,
    )
    _passes(result["outputs"], tmp_path, eager, work_dir)


def _passes(
    outputs: list[dict[str, Any]], logits_dir: Path, eager: list[dict[str, Any]], work_dir: Path
) -> None:
    verdicts = judge(
        _ENGINE_JOBS,
        {output["id"]: output for output in outputs},
        {output["id"]: output for output in eager},
        engine_logits_dir=logits_dir,
        reference_logits_dir=work_dir / "eager-logits",
        rounding_factor=2.0,
    )
    assert len(verdicts) == 6
    assert [verdict.reason for verdict in verdicts] == [""] * 6
