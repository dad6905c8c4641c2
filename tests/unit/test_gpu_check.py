"""`trtforge gpu-check`: what it holds against reality, and what its report says.

Run here against the stand-in toolchain, which the report must never let pass for the real thing.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from models import write_tiny_model
from standin_engine import STANDIN_DIR, STANDIN_PYTHON

from trtforge import checkpoint
from trtforge.checkpoint.target import Target
from trtforge.cli import gpu_check as command
from trtforge.engines.trtllm.option_table import raw_table
from trtforge.engines.trtllm.versions import SUPPORTED, release
from trtforge.gpu_check.expectations import compare_tables, expected_names, flags_of_help
from trtforge.gpu_check.report import Check, Report, render
from trtforge.gpu_check.tensors import compare_checkpoints


@dataclass(frozen=True)
class Run:
    code: int
    shown: str
    report: str
    data: Mapping[str, Any]

    def status(self, name: str) -> str:
        return next(c["status"] for c in self.data["checks"] if c["name"].startswith(name))


def gpu_check(directory: Path, **variables: str) -> Run:
    model = directory / "model"
    if not model.exists():
        write_tiny_model(model)
    unset = ("CUDA_VISIBLE_DEVICES", "TRTFORGE_STANDIN_FAULT", "TRTFORGE_TRTLLM_PYTHON")
    done = subprocess.run(
        [sys.executable, "-m", "trtforge.cli", "gpu-check", "--model", model, "--out", "out"],
        cwd=directory,
        env={
            **{k: v for k, v in os.environ.items() if k not in unset},
            "TRTFORGE_HOME": str(directory / "home"),
            "TRTFORGE_STANDIN_PYTHON": sys.executable,
            "TRTLLM_EXAMPLES": str(STANDIN_DIR),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    out = directory / "out"
    report = (out / "report.md").read_text()
    return Run(done.returncode, done.stdout, report, json.loads((out / "report.json").read_text()))


@pytest.fixture(scope="module")
def standin_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("gpu-check")
    return gpu_check(directory, TRTFORGE_TRTLLM_PYTHON=str(STANDIN_PYTHON))


def test_everything_that_needs_no_tensorrt_passes_on_the_stand_in(standin_run: Run) -> None:
    statuses = {check["name"]: check["status"] for check in standin_run.data["checks"]}
    assert set(statuses.values()) == {"PASS", "NOT RUN"}, statuses
    not_run = {name for name, status in statuses.items() if status == "NOT RUN"}
    assert not_run == {"second build, with the timing cache", "the answer is the original model's"}


def test_the_stand_in_says_so_loudly_and_ends_with_an_error(standin_run: Run) -> None:
    assert standin_run.code == 2
    head = standin_run.report.splitlines()[:4]
    assert any(line.startswith("**STAND-IN. STAND-IN.") for line in head)
    assert "1.2.1+standin" in standin_run.report
    report = Report("1.2.1", standin=True, checks=[Check("one", "PASS")])
    command._end(report, allow_standin=True)
    with pytest.raises(typer.Exit) as end:
        command._end(report, allow_standin=False)
    assert end.value.exit_code == 2


def test_the_report_is_on_the_screen_and_names_no_path_of_this_machine(
    standin_run: Run, tmp_path: Path
) -> None:
    assert standin_run.report.strip() in standin_run.shown
    report = Report("1.2.1", checks=[Check("one", "FAIL", f"in {tmp_path}/x|y", 1.0, ("line",))])
    text = render(report, {str(tmp_path): "<out>"})
    assert "in <out>/x\\|y" in text
    assert str(tmp_path) not in text
    assert "**FAIL**" in text


def test_without_tensorrt_llm_the_rest_is_not_run_and_nothing_is_claimed(tmp_path: Path) -> None:
    found = gpu_check(tmp_path)
    assert found.code == 4
    assert found.status("toolchain") == "FAIL"
    assert "TRTFORGE_TRTLLM_PYTHON" in found.report
    assert found.status("run") == found.status("first build") == "NOT RUN"
    # Our own converter needs no GPU.
    assert found.status("conversion (our") == "PASS"


def test_a_build_that_fails_is_told_with_its_cause(tmp_path: Path) -> None:
    found = gpu_check(
        tmp_path,
        TRTFORGE_TRTLLM_PYTHON=str(STANDIN_PYTHON),
        TRTFORGE_STANDIN_FAULT="gpu-oom,convert-missing-rank",
    )
    assert found.code == 4
    assert found.status("first build") == "FAIL"
    assert found.status("conversion equals") == "FAIL"
    assert found.status("run") == "NOT RUN"
    assert "rank0.safetensors is missing" in found.report


def test_every_difference_of_the_option_tables_is_named() -> None:
    ours = raw_table("1.2")
    assert compare_tables(ours, ours) == []
    theirs = copy.deepcopy(ours)
    by_flag = {row["flags"][0]: row for row in theirs}
    by_flag["--max_batch_size"]["default"] = 4096
    by_flag["--kv_cache_type"]["flags"] = ["--kv_cache_type", "--cache"]
    theirs.remove(by_flag["--workers"])
    theirs.append({**by_flag["--dry_run"], "flags": ["--brand_new"]})
    assert compare_tables(ours, theirs) == [
        "--brand_new: not in our table",
        "--kv_cache_type: flags is ['--cache', '--kv_cache_type'], our table says "
        "['--kv_cache_type']",
        "--max_batch_size: default is 4096, our table says 2048",
        "--workers: not in the release",
    ]


def test_options_are_read_from_a_help_text_and_not_from_its_prose() -> None:
    text = """usage: trtllm-build [-h] [--checkpoint_dir CHECKPOINT_DIR]

options:
  -h, --help            show this help message and exit
  --max_seq_len MAX_SEQ_LEN, --max_decoder_seq_len MAX_SEQ_LEN
                        Maximum of --not_this one (default: None)
  --strip_plan          Instead of --nor_this. (default: False)

Plugin arguments:
  --moe_plugin {auto,float16}
"""
    expected = {"--max_seq_len", "--max_decoder_seq_len", "--strip_plan", "--moe_plugin"}
    assert flags_of_help(text) == expected


@pytest.mark.parametrize("version", SUPPORTED)
def test_each_release_is_asked_for_the_api_that_runs_its_engines(version: str) -> None:
    names = expected_names(release(version))
    assert "tensorrt_llm.runtime:ModelRunnerCpp.from_dir" in names
    assert ("tensorrt_llm._tensorrt_engine:LLM.__init__" in names) == version.startswith("1.")


def test_checkpoints_are_compared_tensor_by_tensor(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        model = write_tiny_model(tmp_path / f"{name}-model", seed=seed, with_tokenizer=False)
        checkpoint.convert(model, tmp_path / name, Target())
    same, lines = compare_checkpoints(tmp_path / "one", tmp_path / "one")
    assert same > 0
    assert lines == []
    _, lines = compare_checkpoints(tmp_path / "one", tmp_path / "other")
    assert any("lm_head.weight: other bytes" in line for line in lines)
