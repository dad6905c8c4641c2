"""SmolLM2-135M-Instruct's real weights on an NVIDIA GPU, beside transformers on the same GPU.

Its 9 heads share 3 kv heads, and its hidden size of 576 is no power of two. The prompts are drawn
anew in every run. `pytest -s` shows their seed, and what is said of each answer that leaves the
original's words: by how much fp32 prefers the other token, and how much bf16 explains.
"""

import json
import secrets
from pathlib import Path
from random import Random
from typing import Any

import pytest

from trtforge.canonical import digest
from trtforge.checkpoint import convert
from trtforge.engines.driver_process import run_driver
from trtforge.gates.correctness import Verdict, correctness_jobs, judge, read_logits
from trtforge.gates.divergence import Logits
from trtforge.gates.reading import compare_reading
from trtforge.gates.rounding import Rounding
from trtforge.sources.demo_model import DemoModelMissingError, make_demo_model
from trtforge.spec import GatesSpec
from trtforge.tokenizer import ModelTokenizer, open_tokenizer

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]

_DEVICE = "cuda"
_QUESTION = "How do I count to nine in French?"
_RANDOM_PROMPTS = 7
_NEW_TOKENS = 48
_LIMITS = {
    "max_batch_size": 4,
    "max_input_len": 128,
    "max_seq_len": 192,
    "max_num_tokens": 512,
}
_GATES = GatesSpec()


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real-model")


@pytest.fixture(scope="module")
def model_dir(work_dir: Path) -> Path:
    try:
        make_demo_model(work_dir / "model")
    except DemoModelMissingError as error:
        pytest.skip(str(error))
    return work_dir / "model"


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> ModelTokenizer:
    found = open_tokenizer(model_dir)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def prompts(model_dir: Path, tokenizer: ModelTokenizer) -> list[list[int]]:
    """The README's question, and random tokens of 2 to 128 places."""
    seed = secrets.randbits(32)
    print(f"\nseed of the prompts: {seed}")
    random = Random(seed)
    vocabulary = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    lengths = [random.randint(2, _LIMITS["max_input_len"]) for _ in range(_RANDOM_PROMPTS)]
    return [
        tokenizer.encode_question(_QUESTION),
        *([random.randrange(vocabulary) for _ in range(length)] for length in lengths),
    ]


@pytest.fixture(scope="module")
def checkpoint_dir(work_dir: Path, model_dir: Path) -> Path:
    convert(model_dir, work_dir / "checkpoint")
    return work_dir / "checkpoint"


@pytest.fixture(scope="module", params=["graphs", "kernels"])
def engine_dir(work_dir: Path, checkpoint_dir: Path, request: pytest.FixtureRequest) -> Path:
    toolchain = run_driver(
        "trtforge.engines.aoti.probe_driver", {"device": _DEVICE}, work_dir=work_dir, timeout_s=120
    )
    built = work_dir / str(request.param)
    run_driver(
        "trtforge.engines.aoti.build_driver",
        {
            "checkpoint_dir": str(checkpoint_dir),
            "engine_dir": str(built),
            "cache_in": None,
            "cache_out": str(built.with_suffix(".cache")),
            "device": _DEVICE,
            "decode": request.param,
            "toolchain_key": digest({"gpu": toolchain["gpu_name"]}),
            "limits": _LIMITS,
        },
        work_dir=work_dir,
        timeout_s=600,
    )
    return built


@pytest.fixture(scope="module")
def jobs(prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Each prompt alone, and all in batches."""
    return correctness_jobs(prompts, _NEW_TOKENS, _LIMITS["max_batch_size"])[0]


@pytest.fixture(scope="module")
def eager(work_dir: Path, model_dir: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """The original's outputs by job: its answers and logits in bf16, and along them in fp32."""
    _, asked = correctness_jobs(prompts, _NEW_TOKENS, _LIMITS["max_batch_size"])
    model = {"model_dir": str(model_dir), "dtype": "bfloat16", "device": _DEVICE}
    return _run("reference", model, asked, work_dir / "eager")


def test_it_answers_as_the_original_does(
    engine_dir: Path,
    eager: dict[str, Any],
    jobs: list[dict[str, Any]],
    tokenizer: ModelTokenizer,
    work_dir: Path,
) -> None:
    """Token for token, up to the first that rounding explains."""
    logits_dir = work_dir / f"{engine_dir.name}-answers"
    engine = _run("aoti", {"engine_dir": str(engine_dir)}, jobs, logits_dir)
    verdicts = judge(
        jobs,
        engine,
        eager,
        engine_logits_dir=logits_dir,
        reference_logits_dir=work_dir / "eager",
        # An answer may leave the original's at its first token: then one step is all there is to
        # compare, and luck counts. The other test has every step, and is as strict as the gates.
        rounding_factor=_GATES.step_factor,
    )
    rows = [(job, row) for job in jobs for row in range(len(job["prompts"]))]
    told = [
        _told(verdict, _logits(engine, job, row, logits_dir), _original(eager, job, row, work_dir))
        for verdict, (job, row) in zip(verdicts, rows, strict=True)
    ]
    answer = tokenizer.decode(engine["prompt-0"]["tokens"][0])
    print(f"\n{engine_dir.name}:", *told, f"answer: {answer}", sep="\n  ")
    model = json.loads((engine_dir / "config.json").read_text())["pretrained_config"]
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    assert [model[name] for name in sizes] == [576, 9, 3]
    assert len(verdicts) == 2 * (_RANDOM_PROMPTS + 1)
    assert [text for text, v in zip(told, verdicts, strict=True) if not v.passed] == []


def test_it_reads_the_originals_answers_as_the_original_does(
    engine_dir: Path, eager: dict[str, Any], jobs: list[dict[str, Any]], work_dir: Path
) -> None:
    """At every step: where another token is likeliest, rounding explains it."""
    read = [
        {**job, "forced": [eager[name]["tokens"][0] for name in job["reference_ids"]]}
        for job in jobs
    ]
    logits_dir = work_dir / f"{engine_dir.name}-reading"
    engine = _run("aoti", {"engine_dir": str(engine_dir)}, read, logits_dir)
    verdicts = {}
    for job in read:
        for row, tokens in enumerate(job["forced"]):
            mine = _logits(engine, job, row, logits_dir)
            theirs, exact = _original(eager, job, row, work_dir)
            verdicts[f"{job['id']}.{row}"] = compare_reading(
                tokens,
                mine,
                theirs,
                exact,
                method="teacher-forced",
                gates=_GATES.model_copy(update={"top1_agreement": 1.0}),
            )
    told = [
        f"{name}: {v.rounding_ratio:.2f} times bf16's rounding, {v.worst_step_ratio:.2f} at worst; "
        f"KL {v.kl:.2g} beside {v.reference_kl:.2g}; same token {v.top1_agreement:.0%} {v.reason}"
        for name, v in verdicts.items()
    ]
    print(f"\n{engine_dir.name} reads:", *told, sep="\n  ")
    assert {name: v.reason for name, v in verdicts.items() if not v.passed} == {}


def _run(
    module: str, about: dict[str, Any], jobs: list[dict[str, Any]], logits_dir: Path
) -> dict[str, Any]:
    logits_dir.mkdir()
    result = run_driver(
        f"trtforge.engines.{module}.run_driver",
        {"threads": 0, "jobs": jobs, "logits_dir": str(logits_dir), **about},
        work_dir=logits_dir.parent,
        timeout_s=600,
    )
    return {output["id"]: output for output in result["outputs"]}


def _logits(outputs: dict[str, Any], job: dict[str, Any], row: int, logits_dir: Path) -> Logits:
    """Logits (steps, vocabulary) of one prompt of a job."""
    name = outputs[job["id"]]["logits"]
    return read_logits(logits_dir / name, _NEW_TOKENS, len(job["prompts"]))[:, row]


def _original(
    eager: dict[str, Any], job: dict[str, Any], row: int, work_dir: Path
) -> tuple[Logits, Logits]:
    """The original's logits (steps, vocabulary) for the same prompt, in bf16 and in fp32."""
    output = eager[job["reference_ids"][row]]
    bf16, fp32 = (
        read_logits(work_dir / "eager" / output[name], _NEW_TOKENS, 1)[:, 0]
        for name in ("logits", "logits_fp32")
    )
    return bf16, fp32


def _told(verdict: Verdict, mine: Logits, original: tuple[Logits, Logits]) -> str:
    """One answer in a line: how far it is the original's, and what excuses the first difference."""
    text = f"{verdict.job}.{verdict.prompt}: {verdict.agreed_tokens} of {verdict.compared_tokens}"
    if verdict.near_tie:
        at = verdict.agreed_tokens
        theirs, exact = original
        rounding = Rounding.of(mine[: at + 1], theirs[: at + 1], exact[: at + 1])
        wanted, given = int(theirs[at].argmax()), int(mine[at].argmax())
        gap = rounding.gap(at, wanted, given)
        explained = rounding.explained_gap(at, _GATES.rounding_factor)
        text += (
            f"; then {given} for {wanted}, {gap:+.4f} in fp32; rounding explains {explained:.4f}"
        )
    return f"{text}; {verdict.reason}" if verdict.reason else text
