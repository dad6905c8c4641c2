"""Running a TensorRT-LLM engine: what is asked for, what comes out, and how failures are named.

Against the stand-in toolchain (tests/standin): a real process, real MPI-like ranks, no GPU.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_engine import STANDIN_PYTHON, expected_tokens, write_engine

from trtforge.engines.driver_main import DriverError
from trtforge.engines.driver_process import DriverTimeoutError
from trtforge.engines.trtllm import mpi, run
from trtforge.engines.trtllm.engine_limits import EngineLimits, read_limits, require_jobs_fit
from trtforge.engines.trtllm.generation import assemble, sampling_of
from trtforge.engines.trtllm.run_failures import recognise, unknown
from trtforge.errors import TrtforgeError
from trtforge.progress import ignore

PROMPTS = [[1, 2, 3], [9, 8, 7]]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TRTFORGE_STANDIN_PYTHON", sys.executable)
    # A run inside a Slurm job must not take itself for one of its ranks.
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    return monkeypatch


def job(name: str = "job", **more: Any) -> dict[str, Any]:
    return {"id": name, "prompts": PROMPTS, "max_new_tokens": 6, **more}


def outcome(
    tmp_path: Path, engine: Path, jobs: list[dict[str, Any]], version: str = "1.2.1", **more: Any
) -> dict[str, Any]:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return run.run_for_facts(
        STANDIN_PYTHON,
        version,
        engine_dir=engine,
        jobs=jobs,
        logits_dir=work,
        work_dir=work,
        on_progress=ignore,
        on_log=lambda _line: None,
        **more,
    )


def limits(**changes: Any) -> EngineLimits:
    usual: dict[str, Any] = {
        "version": "1.2.1",
        "world_size": 1,
        "max_batch_size": 4,
        "max_seq_len": 64,
        "max_num_tokens": 128,
        "max_input_len": 64,
        "max_beam_width": 1,
        "vocab_size": 259,
        "generation_logits": False,
    }
    return EngineLimits(**{**usual, **changes})


@pytest.mark.parametrize(
    ("version", "ranks"),
    [("1.2.1", 1), ("0.16.0", 1), ("1.2.1", 2)],
    ids=["LLM", "ModelRunnerCpp of 0.16", "two ranks"],
)
def test_every_token_and_every_time_comes_back(
    standin: pytest.MonkeyPatch, tmp_path: Path, version: str, ranks: int
) -> None:
    standin.setenv("TRTFORGE_STANDIN_VERSION", version)
    standin.setenv("TRTFORGE_STANDIN_GPUS", "2")
    built = {"gather_generation_logits": True}
    engine = write_engine(tmp_path / "engine", version=version, ranks=ranks, build=built)
    jobs = [job("load", warmups=1, repeats=2), job("check", logits=True)]

    result = outcome(tmp_path, engine, jobs, version)

    load, check = result["outputs"]
    assert [load["id"], check["id"]] == ["load", "check"]
    expected = [expected_tokens(prompt, 6) for prompt in PROMPTS]
    assert load["tokens"] == check["tokens"] == expected
    assert [len(times) for times in load["step_s"]] == [6, 6]
    for steps, requests in zip(load["step_s"], load["request_s"], strict=True):
        assert steps == sorted(steps)
        assert [len(times) for times in requests] == [6, 6]
        assert steps[-1] == max(times[-1] for times in requests)
        # Streamed: the first token came before the last.
        assert requests[0][0] < requests[0][-1]
    logits = np.fromfile(tmp_path / "work" / check["logits"], "<f4").reshape(6, 2, -1)
    assert logits.shape[2] == 259, "the padding of the vocabulary is cut off"
    assert logits.argmax(-1).T.tolist() == expected
    assert result["load_s"] > 0
    assert result["warnings"] == []


@pytest.mark.usefixtures("standin")
def test_a_stop_id_ends_a_sequence_and_is_kept(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine")
    expected = expected_tokens(PROMPTS[0], 6)
    stop = expected[2]
    asked = job(prompts=[PROMPTS[0]], stop_ids=[stop])

    (output,) = outcome(tmp_path, engine, [asked])["outputs"]

    assert output["tokens"] == [expected[: expected.index(stop) + 1]]


def test_an_engine_of_0_16_without_logits_says_how_to_get_them(
    standin: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standin.setenv("TRTFORGE_STANDIN_VERSION", "0.16.0")
    engine = write_engine(tmp_path / "engine", version="0.16.0")
    with pytest.raises(run.NoLogitsError, match="gather_generation_logits"):
        outcome(tmp_path, engine, [job(logits=True)], "0.16.0")


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("run-oom", run.GpuMemoryError, "checkpoint.tp"),
        ("run-wrong-tensorrt", run.EngineVersionError, "another version of TensorRT"),
        ("run-wrong-gpu", run.EngineGpuError, "another type of GPU"),
        ("run-host-oom", run.HostMemoryError, "ran out of memory"),
        ("run-mpi-abort", run.MpiError, "MPI_ABORT"),
        ("run-request-error", run.RequestTooLargeError, "exceeds maximum input length"),
        ("run-no-logits", run.NoLogitsError, "gives no logits"),
    ],
)
def test_failures_have_names_and_remedies(
    standin: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: str,
    error: type[TrtforgeError],
    words: str,
) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", fault)
    engine = write_engine(tmp_path / "engine")
    with pytest.raises(error, match=words) as caught:
        outcome(tmp_path, engine, [job(logits=fault == "run-no-logits")])
    assert caught.value.remedy


def test_a_rank_that_aborts_ends_the_run(standin: pytest.MonkeyPatch, tmp_path: Path) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", "run-mpi-abort")
    standin.setenv("TRTFORGE_STANDIN_GPUS", "2")
    engine = write_engine(tmp_path / "engine", ranks=2)
    with pytest.raises(run.MpiError, match="MPI_ABORT"):
        outcome(tmp_path, engine, [job()])


def test_a_run_that_hangs_is_ended_at_its_time_limit(
    standin: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", "run-hang")
    engine = write_engine(tmp_path / "engine")
    with pytest.raises(DriverTimeoutError, match="was not done"):
        outcome(tmp_path, engine, [job()], timeout_s=3)


def test_a_crash_after_the_work_is_a_warning(standin: pytest.MonkeyPatch, tmp_path: Path) -> None:
    standin.setenv("TRTFORGE_STANDIN_FAULT", "run-crash-at-exit")
    engine = write_engine(tmp_path / "engine")
    result = outcome(tmp_path, engine, [job()])
    assert result["outputs"][0]["tokens"][0] == expected_tokens(PROMPTS[0], 6)
    assert "after its work" in result["warnings"][0]


@pytest.mark.usefixtures("standin")
def test_an_engine_of_another_release_is_not_loaded(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", version="1.1.0")
    with pytest.raises(run.EngineVersionError, match=r"built by TensorRT-LLM 1\.1\.0, this is"):
        outcome(tmp_path, engine, [job()])


@pytest.mark.usefixtures("standin")
def test_an_engine_needs_a_gpu_for_each_rank(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", ranks=2)
    with pytest.raises(run.TooFewGpusError, match="needs as many GPUs"):
        outcome(tmp_path, engine, [job()])


@pytest.mark.usefixtures("standin")
def test_a_missing_rank_file_is_found_before_loading(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", ranks=2)
    (engine / "rank1.engine").unlink()
    with pytest.raises(run.EngineUnusableError, match=r"rank1\.engine is missing"):
        outcome(tmp_path, engine, [job()])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"prompts": [[1]] * 5}, "batch-too-large"),
        ({"prompts": [[1], []]}, "empty-prompt"),
        ({"prompts": [[1] * 64], "max_new_tokens": 1}, "prompt-too-long"),
        ({"prompts": [[1] * 60], "max_new_tokens": 5}, "sequence-too-long"),
        ({"prompts": [[1, 259]]}, "token-id-too-large"),
        ({"prompts": [[1, -1]]}, "token-id-too-large"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_engine_is_loaded(
    changes: dict[str, Any], cause: str
) -> None:
    with pytest.raises(DriverError) as caught:
        require_jobs_fit(limits(), [job(**changes)])
    assert caught.value.cause == cause


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 200))
def test_a_request_is_refused_exactly_when_upstream_would(
    prompt: int, new: int, max_num_tokens: int
) -> None:
    engine = limits(max_num_tokens=max_num_tokens)
    fits = prompt <= min(63, max_num_tokens) and prompt + new <= 64
    try:
        require_jobs_fit(engine, [job(prompts=[[1] * prompt], max_new_tokens=new)])
    except DriverError:
        assert not fits
    else:
        assert fits


def test_max_input_len_counts_only_without_context_fmha(tmp_path: Path) -> None:
    with_it = read_limits(write_engine(tmp_path / "a", build={"max_input_len": 8}))
    plugins = {"remove_input_padding": True, "context_fmha": False}
    without = {"max_input_len": 8, "plugin_config": plugins}
    assert with_it.max_prompt == 63
    assert read_limits(write_engine(tmp_path / "b", build=without)).max_prompt == 8


@given(st.lists(st.lists(st.floats(0.001, 10), min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_step_is_over_when_its_slowest_sequence_has_its_token(gaps: list[list[float]]) -> None:
    times = [[sum(row[: n + 1]) for n in range(len(row))] for row in gaps]
    steps = assemble([[0] * len(row) for row in gaps], times, None, 1).step_s
    assert len(steps) == max(map(len, gaps))
    assert steps == sorted(steps)
    assert steps[-1] == max(row[-1] for row in times)
    assert all(steps[n] >= row[n] for row in times for n in range(len(row)))


def test_greedy_is_asked_for_explicitly_and_so_is_sampling() -> None:
    assert sampling_of({}) == {"top_k": 1}
    assert sampling_of({"sampling": {"temperature": 0.0, "top_k": 5}}) == {"top_k": 1}
    # Without top_k and top_p the runtime would be greedy whatever the temperature.
    chosen = sampling_of({"sampling": {"temperature": 0.7, "seed": 3}})
    assert chosen == {"temperature": 0.7, "top_p": 1.0, "seed": 3}
    with pytest.raises(DriverError, match="no way to choose"):
        sampling_of({"sampling": {"temperature": -1.0}})


def test_ranks_see_nothing_of_an_outer_job() -> None:
    outer = {
        "PATH": "/bin",
        "OMPI_COMM_WORLD_RANK": "3",
        "PMIX_RANK": "3",
        "SLURM_JOB_ID": "1",
        "OMPI_MCA_btl": "self",
    }
    cleaned = mpi.clean_environment(outer)
    assert cleaned["PATH"] == "/bin"
    assert cleaned["OMPI_MCA_btl"] == "self", "an administrator's network settings stay"
    assert not {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_JOB_ID"} & set(cleaned)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
            "gpu-out-of-memory",
        ),
        (
            "[TensorRT-LLM][ERROR] MPI size 1 != TP size 2 * PP size 1 * CP Size 1",
            "wrong-world-size",
        ),
        ("ImportError: libmpi.so.40: cannot open shared object file", "missing-library"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver-too-old"),
        ("RuntimeError: No CUDA GPUs are available", "no-gpu"),
    ],
)
def test_upstreams_words_are_recognised(line: str, cause: str) -> None:
    found = recognise(["some line", line, "another"])
    assert found is not None
    assert found.cause == cause
    assert found.remedy


def test_the_cause_is_named_and_not_what_follows_from_it() -> None:
    log = [
        "CUDA runtime error in ::cudaMallocAsync(ptr, n): out of memory (tllmBuffers.h:112)",
        "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed",
        "MPI_ABORT was invoked on rank 0",
    ]
    found = recognise(log)
    assert found is not None
    assert found.cause == "wrong-tensorrt"
    assert recognise(["all is well"]) is None


def test_an_unknown_failure_is_told_in_its_own_words() -> None:
    assert "ValueError: no" in unknown(["Traceback", "ValueError: no", ""], 1).problem
    assert "signal 11" in unknown([], -11).problem
    assert unknown([], 137).cause == "killed"


def test_what_mpirun_adds_is_not_taken_for_the_cause() -> None:
    # As Open MPI 4.1.6 writes it.
    added = [
        "--------------------------------------------------------------------------",
        "Primary job  terminated normally, but 1 process returned",
        "a non-zero exit code. Per user-direction, the job has been aborted.",
        "--------------------------------------------------------------------------",
        "mpirun detected that one or more processes exited with non-zero status, thus causing",
        "the job to be terminated. The first process to do so was:",
        "",
        "  Process name: [[28299,1],0]",
        "  Exit code:    1",
        "--------------------------------------------------------------------------",
    ]
    log = ["Traceback (most recent call last):", "RuntimeError: something new", *added]
    assert recognise(log) is None
    assert "RuntimeError: something new" in unknown(log, 1).problem
    killed = (
        "mpirun noticed that process rank 1 with PID 7 on node box exited on signal 9 (Killed)."
    )
    found = recognise([*added[:4], killed])
    assert found is not None
    assert found.cause == "killed"
