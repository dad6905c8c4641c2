"""Which processes count as a service of the stack, and which end with it."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from trtforge.stack import process
from trtforge.stack.process import Command

# A service that starts something in a session of its own, as a worker does with a run.
_PARENT = "setsid sleep 60 & echo $! > child; wait"


@dataclass(frozen=True)
class Started:
    leader: psutil.Process
    child: psutil.Process
    pid_file: Path
    mark: str

    def stop(self, *, children: bool = True) -> None:
        process.stop(
            self.pid_file,
            self.mark,
            first_signal=signal.SIGTERM,
            grace_s=0.5,
            children=children,
        )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    mark, pid_file = f"test@{tmp_path}", tmp_path / "service.json"
    command = Command(("sh", "-c", _PARENT), dict(os.environ), tmp_path)
    leader = process.spawn(command, mark=mark, log=tmp_path / "log", pid_file=pid_file)
    deadline = time.monotonic() + 10
    while not (child := _read(tmp_path / "child")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # It is in the group of its parent until setsid has run.
    while os.getsid(int(child)) != int(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield Started(leader, psutil.Process(int(child)), pid_file, mark)
    process.kill(of for of, _ in process.marked(mark))


def test_what_a_service_started_bears_its_mark(started: Started) -> None:
    assert {of.pid for of, _ in process.marked(started.mark)} == {
        started.leader.pid,
        started.child.pid,
    }


def test_a_service_is_found_without_its_pid_file(started: Started) -> None:
    started.pid_file.unlink()
    assert process.find(started.pid_file, started.mark) == started.leader
    assert started.pid_file.exists()


@pytest.mark.parametrize("pid_file", ["kept", "lost"])
def test_what_a_killed_service_left_behind_is_not_taken_for_it(
    started: Started, pid_file: str
) -> None:
    process.kill([started.leader])
    if pid_file == "lost":
        started.pid_file.unlink()
    assert os.getsid(started.child.pid) == started.child.pid
    assert process.find(started.pid_file, started.mark) is None
    assert process.alive(started.child)


def test_children_end_with_a_service_whatever_their_session(started: Started) -> None:
    started.stop()
    assert not process.alive(started.leader)
    assert not process.alive(started.child)


def test_children_may_be_spared(started: Started) -> None:
    started.stop(children=False)
    assert not process.alive(started.leader)
    assert process.alive(started.child)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
