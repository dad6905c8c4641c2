"""Real subprocesses: `acting_driver` beside this file is the driver of most of these tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from trtforge.engines import driver_process
from trtforge.engines.driver_process import (
    DriverFailedError,
    DriverIncompleteError,
    DriverKilledError,
    DriverTimeoutError,
    ToolchainMissingError,
    run_driver,
)
from trtforge.progress import Progress

TIMEOUT_S = 60.0
HERE = Path(__file__).parent
ROOT = Path(driver_process.__file__).parents[2]
DRIVERS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "trtforge" / "engines").rglob("*_driver.py"))
]

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def toolchain(tmp_path: Path) -> Path:
    """An interpreter in whose environment `acting_driver` is installed."""
    script = tmp_path / "toolchain" / "python"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{HERE}" exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def run(toolchain: Path, work_dir: Path) -> Run:
    """Run the acting driver: `run("echo", key=value)`; keywords of run_driver go in `how`."""

    def call(act: str, how: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "work_dir": work_dir,
            "timeout_s": TIMEOUT_S,
            "python": toolchain,
        }
        return run_driver("acting_driver", {"act": act, **request}, **(settings | (how or {})))

    return call


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_gone(pids: Iterable[int]) -> bool:
    """True once none of the processes runs; waits for the kernel to carry out a kill."""
    deadline = time.monotonic() + 20
    while not all(is_gone(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class TestSuccess:
    def test_the_result_arrives_with_time_and_memory(self, run: Run) -> None:
        result = run("echo", text="ä日本", number=1.5)
        assert result["request"] == {"act": "echo", "text": "ä日本", "number": 1.5}
        assert result["seconds"] > 0
        assert result["peak_rss_bytes"] > 1 << 20

    def test_progress_arrives(self, run: Run) -> None:
        told: list[Progress] = []
        run("echo", {"on_progress": told.append})
        assert told == [
            Progress("echoing", 1, 2, "bytes"),
            Progress("echoing", 2, None, "steps"),
        ]

    def test_the_log_arrives_line_by_line_and_is_kept(self, run: Run, work_dir: Path) -> None:
        lines: list[str] = []
        run("echo", {"on_log": lines.append})
        assert lines == ["a line for the log"]
        assert (work_dir / "acting_driver.log").read_text() == "a line for the log\n"

    def test_the_driver_sees_trtforge_and_nothing_else_of_ours(self, run: Run) -> None:
        seen = run("look round")
        assert seen["files"] == ["request.json", "trtforge"]
        assert seen["first_path"] == seen["scratch"]

    def test_variables_are_passed(self, run: Run) -> None:
        assert run("look round", {"environment": {"TRTFORGE_TEST": "1"}})["variable"] == "1"

    def test_what_libraries_print_goes_to_the_log_and_not_into_the_protocol(self, run: Run) -> None:
        lines: list[str] = []
        told: list[Progress] = []
        run("print", {"on_log": lines.append, "on_progress": told.append})
        assert told == []
        assert "from a child" in lines
        assert any("printed" in line for line in lines)

    def test_what_is_printed_before_the_driver_begins_is_passed_over(self, run: Run) -> None:
        told: list[Progress] = []
        run(
            "echo",
            {"environment": {"TRTFORGE_TEST": "print at import"}, "on_progress": told.append},
        )
        assert [p.what for p in told] == ["echoing", "echoing"]

    def test_much_output_and_a_large_result_do_not_block(self, run: Run) -> None:
        told: list[Progress] = []
        result = run("print much", {"on_progress": told.append}, lines=5000, ballast="z" * 500_000)
        assert len(result["data"]) == 1_000_000
        assert told[-1].done == 4999

    def test_relative_paths_mean_the_callers_directory(
        self, run: Run, work_dir: Path, toolchain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(work_dir.parent)
        how = {
            "work_dir": work_dir.relative_to(work_dir.parent),
            "python": toolchain.relative_to(work_dir.parent),
        }
        assert run("echo", how)["request"] == {"act": "echo"}
        assert (work_dir / "acting_driver.log").is_file()

    def test_nothing_but_the_log_is_left(self, run: Run, work_dir: Path) -> None:
        run("echo")
        assert [path.name for path in work_dir.iterdir()] == ["acting_driver.log"]


class TestFailure:
    def test_the_drivers_own_error_is_passed_on(self, run: Run) -> None:
        with pytest.raises(DriverFailedError) as caught:
            run("known error")
        assert str(caught.value) == "acting_driver: the dice fell badly. Throw them again"
        assert caught.value.cause == "no-luck"

    def test_an_unexpected_exception_is_named_and_its_traceback_logged(
        self, run: Run, work_dir: Path
    ) -> None:
        log = work_dir / "acting_driver.log"
        with pytest.raises(DriverFailedError, match="ZeroDivisionError: seven by zero") as caught:
            run("unexpected error")
        assert caught.value.cause == "unexpected"
        assert str(log) in caught.value.remedy
        assert "Traceback (most recent call last)" in log.read_text()

    def test_an_exit_code_comes_with_the_last_lines_of_the_log(self, run: Run) -> None:
        with pytest.raises(DriverFailedError, match="exit code 3: last words"):
            run("exit", code=3)

    def test_a_module_that_is_not_there_is_said_so(self, work_dir: Path) -> None:
        with pytest.raises(DriverFailedError, match="No module named no_such_driver"):
            run_driver("no_such_driver", {}, work_dir=work_dir, timeout_s=TIMEOUT_S)

    @pytest.mark.parametrize("act", ["exit", "write rubbish"])
    def test_exit_code_0_without_a_result_is_no_success(self, run: Run, act: str) -> None:
        with pytest.raises(DriverIncompleteError, match="left no readable result"):
            run(act, code=0)

    def test_sigkill_hints_at_memory(self, run: Run) -> None:
        with pytest.raises(
            DriverKilledError, match=r"SIGKILL\. Most likely the machine ran out of mem"
        ):
            run("die", signal=signal.SIGKILL)

    def test_another_signal_is_named_and_points_at_the_log(self, run: Run, work_dir: Path) -> None:
        with pytest.raises(DriverKilledError, match="SIGSEGV") as caught:
            run("die", signal=signal.SIGSEGV)
        assert "memory" not in str(caught.value)
        assert str(work_dir / "acting_driver.log") in caught.value.remedy

    @pytest.mark.parametrize("kind", ["missing", "directory", "not executable"])
    def test_an_interpreter_that_cannot_be_started_is_named(
        self, run: Run, work_dir: Path, tmp_path: Path, kind: str
    ) -> None:
        python = tmp_path / "no" / "python"
        if kind != "missing":
            python.parent.mkdir()
            python.mkdir() if kind == "directory" else python.write_text("")
        with pytest.raises(ToolchainMissingError, match="cannot be started") as caught:
            run("echo", {"python": python})
        assert caught.value.field == "TRTFORGE_TOOLCHAIN_PYTHON"
        assert caught.value.value == str(python)
        assert list(work_dir.iterdir()) == []

    @pytest.mark.parametrize("callback", ["on_progress", "on_log"])
    def test_a_callback_that_raises_ends_the_driver_and_is_heard(
        self, run: Run, callback: str
    ) -> None:
        def stop(_: object) -> None:
            raise InterruptedError("enough")

        with pytest.raises(InterruptedError, match="enough"):
            run("print much", {callback: stop}, lines=10**9)

    @pytest.mark.parametrize(
        "request_", [{"act": "known error"}, {"act": "exit", "code": 1}, {"act": "exit", "code": 0}]
    )
    def test_nothing_but_the_log_is_left(
        self, run: Run, work_dir: Path, request_: dict[str, Any]
    ) -> None:
        with pytest.raises((DriverFailedError, DriverIncompleteError)):
            run(**request_)
        assert [path.name for path in work_dir.iterdir()] == ["acting_driver.log"]


class TestNothingSurvives:
    def test_a_child_left_behind_by_a_driver_that_finished_is_ended(self, run: Run) -> None:
        told: list[Progress] = []
        run("leave children", {"on_progress": told.append}, sleep_s=0)
        assert len(told) == 2
        assert all_gone(p.done for p in told)

    def test_a_timeout_ends_a_driver_and_its_child_that_both_ignore_sigterm(
        self, run: Run, work_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver_process, "_TERM_GRACE_S", 0.3)
        told: list[Progress] = []
        how = {"on_progress": told.append, "timeout_s": 3.0}
        with pytest.raises(DriverTimeoutError, match="was not done after 3 s") as caught:
            run("leave children", how, sleep_s=600, stubborn=True)
        assert str(work_dir / "acting_driver.log") in caught.value.remedy
        assert len(told) == 2
        assert all_gone(p.done for p in told)
        assert [path.name for path in work_dir.iterdir()] == ["acting_driver.log"]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_the_end_of_the_parent_ends_the_driver_and_its_child(
        self, toolchain: Path, work_dir: Path, number: signal.Signals
    ) -> None:
        script = (
            "import json, pathlib, sys\n"
            "from trtforge.engines.driver_process import run_driver\n"
            "run_driver('acting_driver', {'act': 'leave children', 'sleep_s': 600},\n"
            "    work_dir=pathlib.Path(sys.argv[1]), timeout_s=600,\n"
            "    python=pathlib.Path(sys.argv[2]),\n"
            "    on_progress=lambda p: print(p.done, flush=True))\n"
        )
        command = [sys.executable, "-c", script, str(work_dir), str(toolchain)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as parent:
            assert parent.stdout is not None
            pids = [int(parent.stdout.readline()) for _ in range(2)]
            assert not any(is_gone(pid) for pid in pids)
            parent.send_signal(number)
            parent.wait(TIMEOUT_S)
        assert all_gone(pids)


class TestDriversOfTheProject:
    """They are run by toolchains that have none of trtforge's dependencies."""

    @pytest.fixture
    def bare_python(self, tmp_path: Path) -> Path:
        script = tmp_path / "bare-python"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        script.chmod(0o755)
        return script

    def test_the_probe_says_what_a_bare_interpreter_lacks(
        self, bare_python: Path, work_dir: Path
    ) -> None:
        with pytest.raises(DriverFailedError, match="has no PyTorch") as caught:
            run_driver(
                "trtforge.engines.aoti.probe_driver",
                {"device": "cpu"},
                work_dir=work_dir,
                timeout_s=TIMEOUT_S,
                python=bare_python,
            )
        assert caught.value.cause == "no-torch"

    @pytest.mark.parametrize("driver", DRIVERS)
    def test_each_can_be_started_with_the_standard_library_alone(
        self, bare_python: Path, driver: str
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [str(bare_python), "-c", f"import {driver}"]
        subprocess.run(command, cwd=bare_python.parent, env=environment, check=True)
