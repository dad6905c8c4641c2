"""Real processes: `acting_rank` beside this file is what each rank runs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from trtforge.engines import driver_process
from trtforge.engines.aoti import ranks as module
from trtforge.engines.aoti.ranks import run_ranks
from trtforge.engines.driver_main import DriverError

HERE = Path(__file__).parent
ROOT = Path(driver_process.__file__).parents[2]


class Ranks:
    """Runs `acting_rank`; knows the processes that it was."""

    def __init__(self, directory: Path) -> None:
        self.told: list[str] = []
        self._notes = directory

    def run(self, *acts: str) -> Any:
        request = {"acts": acts, "notes": str(self._notes)}
        return run_ranks("acting_rank", request, len(acts), lambda what, *_, **__: self.tell(what))

    def tell(self, what: str) -> None:
        self.told.append(what)

    def fail(self, *acts: str) -> DriverError:
        with pytest.raises(DriverError) as caught:
            self.run(*acts)
        return caught.value

    def left(self) -> list[int]:
        """The processes that are still there."""
        pids = [int(note.read_text() or 0) for note in self._notes.iterdir()]
        return [pid for pid in pids if pid and is_there(pid)]


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    (tmp_path / "notes").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(HERE)]))
    return Ranks(tmp_path / "notes")


def test_all_run_at_once_and_rank_0_answers(ranks: Ranks) -> None:
    # Neither of the first two ends before the third has begun.
    result = ranks.run("wait", "wait", "call")
    assert (result["acted"], result["interfaces"]) == (0, ["lo"])
    assert ranks.told == ["rank 0"]
    assert ranks.left() == []
    assert list(Path.cwd().iterdir()) == []


class TestFailures:
    @pytest.mark.parametrize("who", [0, 1])
    def test_a_rank_that_is_killed_is_named_whatever_the_others_say(
        self, ranks: Ranks, who: int
    ) -> None:
        acts = ["wait lost", "wait lost"]
        acts[who] = "call signal=9"
        error = ranks.fail(*acts)
        assert error.cause == "rank-killed"
        assert error.problem == f"rank {who} of 2 was ended by SIGKILL"
        assert "ran out of memory" in error.remedy
        assert ranks.left() == []
        assert list(Path.cwd().iterdir()) == []

    def test_one_that_waits_for_it_for_ever_is_ended(
        self, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_GRACE_S", 0.3)
        # It would wait ten minutes.
        error = ranks.fail("hang", "signal=9")
        assert error.problem == "rank 1 of 2 was ended by SIGKILL"
        assert ranks.left() == []

    @pytest.mark.parametrize("others", ["wait lost", "wait signal=6", "exit=0"])
    def test_an_exception_is_told_in_the_words_of_the_rank_that_had_it(
        self, ranks: Ranks, others: str
    ) -> None:
        error = ranks.fail(others, "call raise")
        assert error.problem == "rank 1 of 2: ZeroDivisionError: seven by zero"
        assert ranks.left() == []

    def test_what_all_ranks_refuse_is_no_ranks_matter(self, ranks: Ranks) -> None:
        error = ranks.fail("refuse", "refuse")
        assert (error.cause, error.problem) == ("limit-exceeded", "25 tokens in a prompt")
        assert error.remedy == "Ask for less"

    @pytest.mark.parametrize(
        ("act", "problem"),
        [
            ("call exit=3", "rank 1 of 2 ended with exit code 3"),
            ("call signal=6", "rank 1 of 2 was ended by SIGABRT"),
        ],
    )
    def test_one_that_ends_without_a_word_is_named(
        self, ranks: Ranks, act: str, problem: str
    ) -> None:
        assert ranks.fail("wait lost", act).problem == problem

    def test_a_module_that_cannot_be_started_is_an_error(self, ranks: Ranks) -> None:
        with pytest.raises(DriverError, match=r"rank [01] of 2 ended with exit code 1"):
            run_ranks("no_such_rank", {}, 2, lambda *_: None)
        assert ranks.left() == []


def test_a_rank_that_cannot_take_leave_is_not_waited_for(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EXIT_S", 0.3)
    assert ranks.run("sleep=0", "linger")["acted"] == 0
    assert ranks.left() == []


def test_what_ranks_say_to_each_other(ranks: Ranks) -> None:
    pytest.importorskip("torch")
    said = ranks.run("talk", "talk")
    assert said["sum"] == [2.0, 2.0]
    assert said["joined"] == [[0.0, 7.0, 1.0, 7.0], [0.0, 8.0, 1.0, 8.0]]
    # Rank 1 would have chosen 4 and 5.
    assert said["agreed"] == [3, 4]


def test_too_few_gpus_are_counted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from trtforge.engines.aoti.rank_group import RankGroup

    found = torch.cuda.device_count()
    with pytest.raises(DriverError, match=f"runs on 99 GPUs, and PyTorch finds {found}") as caught:
        RankGroup(0, 99, tmp_path / "rendezvous", "cuda")
    assert caught.value.cause == "too-few-gpus"
    assert "checkpoint.tp" in caught.value.remedy


def test_the_end_of_the_driver_is_the_end_of_its_ranks(ranks: Ranks, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    script = (
        "import sys\n"
        "from trtforge.engines.aoti.ranks import run_ranks\n"
        "request = {'acts': ['hang', 'hang'], 'notes': sys.argv[1]}\n"
        "run_ranks('acting_rank', request, 2, lambda *_, **__: print('began', flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(notes)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "began\n"
        eventually(lambda: len(ranks.left()) == 2)
        driver.kill()
    eventually(lambda: ranks.left() == [])


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
