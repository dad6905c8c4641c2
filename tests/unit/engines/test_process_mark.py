"""Whatever a driver started is found, wherever it hides."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable

import pytest

from trtforge.engines.process_mark import MARK_VARIABLE, kill_marked, marked_processes

SLEEP = "import time; time.sleep(600)"
SLEEPER = [sys.executable, "-c", SLEEP]
STUBBORN = [
    sys.executable,
    "-c",
    f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}",
]
DAEMON = [
    sys.executable,
    "-c",
    f"import subprocess; subprocess.Popen({SLEEPER!r}, start_new_session=True)",
]


def start(command: list[str], mark: str, **how: bool) -> None:
    environment = {**os.environ, MARK_VARIABLE: mark}
    subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **how)  # type: ignore[call-overload]


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    ("command", "how"),
    [
        (SLEEPER, {}),
        (STUBBORN, {}),
        (SLEEPER, {"start_new_session": True}),
        (DAEMON, {"start_new_session": True}),
    ],
    ids=["a child", "one that ignores SIGTERM", "one in a session of its own", "a daemon's child"],
)
def test_it_is_found_and_ended(command: list[str], how: dict[str, bool]) -> None:
    mark = uuid.uuid4().hex
    start(command, mark, **how)
    assert wait_for(lambda: len(marked_processes(mark)) == 1)
    kill_marked(mark)
    assert marked_processes(mark) == []


def test_others_are_left_alone() -> None:
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    start(SLEEPER, other)
    assert wait_for(lambda: len(marked_processes(other)) == 1)
    kill_marked(mine)
    # Not by the beginning of a mark either.
    kill_marked(other[:8])
    assert len(marked_processes(other)) == 1
    kill_marked(other)


def test_a_process_does_not_find_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys; from trtforge.engines.process_mark import *; "
        f"sys.exit(len(marked_processes(os.environ[{MARK_VARIABLE!r}])))"
    )
    monkeypatch.setenv(MARK_VARIABLE, uuid.uuid4().hex)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
