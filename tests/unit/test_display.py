"""What `trtforge build` shows: one line per stage, in a terminal and in a pipe."""

import time
from io import StringIO
from typing import Literal

import pytest
from rich.console import Console

from trtforge.display import BuildDisplay
from trtforge.progress import Announced, Progress, StageEvent, announce

LONG = "compiled in 3.1 s with a warm model.cache; 25.2 s without it, 8.1×" * 3


def shown(*events: StageEvent, terminal: bool = False) -> str:
    output = StringIO()
    with BuildDisplay(console_of(output, terminal)):
        for event in events:
            announce(event)
    return output.getvalue()


def console_of(output: StringIO, terminal: bool, width: int = 60) -> Console:
    return Console(file=output, force_terminal=terminal, force_interactive=terminal, width=width)


def stage(
    name: str, kind: Literal["hit", "done", "failed"], message: str, seconds: float
) -> tuple[StageEvent, ...]:
    def step(what: str, done: int, total: int | None) -> StageEvent:
        return StageEvent(name, "progress", progress=Progress(what, done, total, "bytes"))

    return (
        StageEvent(name, "started"),
        step("uploading [bold]", 1, None),
        step("uploading [/x]", 10, 10),
        StageEvent(name, kind, message, seconds=seconds),
    )


def test_in_a_pipe_every_stage_ends_with_one_line() -> None:
    lines = shown(
        *stage("pull", "hit", "7 files", 0.04),
        *stage("compile", "done", LONG, 26.0),
        *stage("benchmark", "failed", "out of memory", 1.5),
    ).splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["=", "pull", "found", "in", "store", "0.0", "s", "7", "files"]
    assert lines[1].startswith(" + compile   made ")
    assert lines[1].endswith(f"26.0 s  {LONG}")
    assert lines[2].split() == ["!", "benchmark", "failed", "1.5", "s"]


def test_in_a_pipe_nothing_is_written_while_a_stage_works() -> None:
    *working, _ = stage("pull", "done", "", 1.0)
    assert shown(*working) == ""


def test_a_terminal_shows_a_bar_with_the_step_and_then_the_end() -> None:
    output = StringIO()
    *working, end = stage("pull", "done", "7 files", 1.0)
    with BuildDisplay(console_of(output, terminal=True, width=100)):
        for event in working:
            announce(event)
        deadline = time.monotonic() + 10
        while "uploading [/x]" not in output.getvalue():  # it is redrawn ten times a second
            assert time.monotonic() < deadline
            time.sleep(0.01)
        announce(end)
    assert "10 bytes of 10 bytes" in output.getvalue()
    assert "+ pull" in output.getvalue()
    assert output.getvalue().count("7 files") == 1


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", ["[red]x[/]", "[/x]", ":warning:", "\\[", "100 %"])
def test_messages_are_shown_as_they_are(text: str, terminal: bool) -> None:
    assert text in shown(*stage("pull", "done", text, 1.0), terminal=terminal)


def test_progress_without_a_stage_is_no_accident() -> None:
    event = StageEvent("pull", "progress", progress=Progress("late", 1, 2, "steps"))
    assert shown(event) == ""


def test_nothing_is_shown_when_the_build_is_over() -> None:
    output = StringIO()
    with BuildDisplay(console_of(output, terminal=False)):
        pass
    announce(StageEvent("pull", "done", "later", seconds=1.0))
    assert output.getvalue() == ""


def test_a_long_step_gives_way_to_the_bar_and_the_amount() -> None:
    output = StringIO()
    step = Progress("fetching file:///" + "long/" * 40, 5, 10, "bytes")
    with BuildDisplay(console_of(output, terminal=True, width=80)):
        announce(StageEvent("pull", "started"))
        announce(StageEvent("pull", "progress", progress=step))
        deadline = time.monotonic() + 10
        while "fetching file" not in output.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "5 bytes of 10 bytes" in output.getvalue()


def test_a_stage_within_another_step_leaves_its_bar_alone() -> None:
    output = StringIO()
    step = Progress("concurrency 2, repeat 1 of 3", 1, 6, "steps")
    with BuildDisplay(console_of(output, terminal=True, width=100)), Announced("bench") as bench:
        for event in stage("pull", "hit", "7 files", 0.1):
            announce(event)
        bench.on_progress(step)
        deadline = time.monotonic() + 10
        while step.what not in output.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        bench.message = "engine 5d41402abc4b"
    assert "+ bench" in output.getvalue()
    assert "engine 5d41402abc4b" in output.getvalue()


def test_a_step_that_fails_says_so() -> None:
    output = StringIO()
    with (
        BuildDisplay(console_of(output, terminal=False)),
        pytest.raises(OSError, match="gone"),
        Announced("bench"),
    ):
        raise OSError("gone")
    assert output.getvalue().split()[:3] == ["!", "bench", "failed"]


def test_the_amount_of_a_step_is_not_that_of_the_one_before() -> None:
    output = StringIO()
    steps = (
        Progress("downloading 8 files", 345_256_349, 345_256_349, "bytes"),
        Progress("loading the engine", 0, None, "steps"),
    )
    with BuildDisplay(console_of(output, terminal=True, width=100)):
        announce(StageEvent("publish", "started"))
        for step in steps:
            announce(StageEvent("publish", "progress", progress=step))
            deadline = time.monotonic() + 10
            while step.what not in output.getvalue():
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert "345.3 MB of 345.3 MB" in output.getvalue()
    assert "of 345256349" not in output.getvalue()
