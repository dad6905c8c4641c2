"""`kill -9` in the middle of a build: finished stages are kept, and nothing half-made is seen.

Ctrl-C does the same, and cleans up.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from forge import PARTS, Build, Forge, write_spec
from models import write_tiny_model

# `trtforge build`, by a process that signals itself at the first progress of a stage that begins
# with certain words. It tells every event, and in the end which processes it leaves behind.
_RUNNER = """
import json, os, signal, sys, time
from contextlib import suppress
import psutil
from trtforge import cli
from trtforge.progress import listening

told, stage, words, child, signal_name, spec = sys.argv[1:]

def tell(*facts):
    with open(told, "a") as lines:
        print(json.dumps(facts), file=lines)

def family():
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            yield process.pid, process.create_time(), process.name()

def listen(event):
    if event.kind != "progress":
        tell("event", event.stage, event.kind)
    elif event.stage == stage and event.progress.what.startswith(words):
        while child and child not in {name for _, _, name in family()}:
            time.sleep(0.05)
        for facts in family():
            tell("child", *facts)
        os.kill(os.getpid(), signal.Signals[signal_name])

sys.argv = ["trtforge", "build", spec, "--json"]
with listening(listen):
    cli.main()
"""


@dataclass(frozen=True)
class Killed:
    """What a killed build told: how its stages ended, and the processes it left behind."""

    exit_code: int
    stderr: str
    ended: dict[str, str]
    children: list[tuple[int, float, str]]


def build_and_kill(
    forge: Forge,
    spec: Path,
    stage: str,
    words: str,
    *,
    child: str = "",
    by: signal.Signals = signal.SIGKILL,
) -> Killed:
    """Signal a build when `stage` tells of `words`, once a process called `child` is running."""
    runner, told = spec.with_suffix(".py"), spec.with_suffix(".told")
    runner.write_text(_RUNNER)
    told.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, runner, told, stage, words, child, by.name, spec],
        env=forge.environment(),
        cwd=forge.home,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    facts = [json.loads(line) for line in told.read_text().splitlines()]
    events = [(stage, kind) for what, stage, kind, *_ in facts if what == "event"]
    return Killed(
        exit_code=done.returncode,
        stderr=done.stderr,
        ended={stage: kind for stage, kind in events if kind != "started"},
        children=[tuple(fact[1:]) for fact in facts if fact[0] == "child"],
    )


def wait_until_gone(children: list[tuple[int, float, str]], forge: Forge) -> None:
    """Wait for the processes of a killed build to end, and for whatever works in its directory."""
    deadline = time.monotonic() + 20
    while True:
        left = [name for pid, at, name in children if lives(pid, at)]
        left += [process.name() for process in psutil.process_iter() if works_in(process, forge)]
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def lives(pid: int, created_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == created_at and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def works_in(process: psutil.Process, forge: Forge) -> bool:
    try:
        return any(str(forge.work) in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def scratch_left(forge: Forge) -> list[str]:
    return [path.name.partition("-")[0] for path in forge.work.glob("*/")]


def new_records(forge: Forge, before: dict[str, str]) -> list[str]:
    """Stages recorded, engines published and aliases set since `before`, without their ids."""
    keys = forge.listing().keys() - before.keys()
    shown = [key.split("/")[:2] for key in keys if key.startswith("stages/")]
    shown += [["manifests"] for key in keys if key.startswith("manifests/")]
    shown += [["aliases"] for key in keys if key.startswith("aliases/")]
    return sorted(parts[-1] for parts in shown)


def finished_work(forge: Forge) -> dict[str, str]:
    """What is in the bucket beside leases: a killed holder leaves its own, for the next to take."""
    return {key: etag for key, etag in forge.listing().items() if not key.startswith("leases/")}


@pytest.mark.usefixtures("built")
def test_a_build_that_is_killed_again_and_again_gets_done(forge: Forge, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny-killed", seed=9)
    spec = write_spec(tmp_path / "spec.yaml", model)
    before = forge.listing()

    killed = build_and_kill(forge, spec, "convert", "transformer.")
    assert killed.exit_code == -signal.SIGKILL
    assert killed.ended == {"pull": "done"}
    assert new_records(forge, before) == ["pull"]
    assert scratch_left(forge) == ["convert"]

    killed = build_and_kill(forge, spec, "compile", "compiling graphs")
    assert killed.ended == {"pull": "hit", "convert": "done"}
    assert killed.children
    wait_until_gone(killed.children, forge)
    assert new_records(forge, before) == ["convert", "pull"]
    assert scratch_left(forge) == ["compile"]

    killed = build_and_kill(forge, spec, "publish", "downloading")
    assert killed.ended == {
        "pull": "hit",
        "convert": "hit",
        "compile": "done",
        "benchmark": "done",
    }
    # The engine is there, whole, and nobody is pointed at it before its copy was tried.
    assert new_records(forge, before) == ["benchmark", "compile", "convert", "manifests", "pull"]
    [manifest] = [m for m in forge.store.list_manifests() if m.core.model.name == model.name]
    forge.store.materialise(manifest.core.files, tmp_path / "copy", use_cache=False)
    assert list(forge.store.list_aliases(model.name)) == []

    result = forge.json("build", spec)
    assert {stage["stage"]: stage["hit"] for stage in result["stages"]} == {
        "pull": True,
        "convert": True,
        "compile": True,
        "benchmark": True,
        "publish": False,
    }
    assert result["engine_id"] == manifest.engine_id
    assert result["aliases"] == {"latest": True}
    assert scratch_left(forge) == []


@pytest.fixture
def cold(forge: Forge, built: Build, tmp_path: Path) -> Iterator[Path]:
    """A spec of another shape than the first engine's, so that there is something to compile."""
    longer = {"max_seq_len": PARTS["engine"]["max_seq_len"] + 1}
    yield write_spec(tmp_path / "spec.yaml", built.model, engine=longer)
    for leftover in forge.work.glob("*/"):
        shutil.rmtree(leftover)


def test_the_compilers_of_a_killed_build_end_with_it(forge: Forge, cold: Path) -> None:
    before = finished_work(forge)
    killed = build_and_kill(forge, cold, "compile", "compiling graphs", child="cc1plus")
    assert killed.exit_code == -signal.SIGKILL
    assert killed.ended == {"pull": "hit", "convert": "hit"}
    assert len(killed.children) >= 3  # the driver, and a compiler of two processes
    wait_until_gone(killed.children, forge)
    assert finished_work(forge) == before


@pytest.mark.slow
def test_an_interrupted_build_ends_its_compilers_and_cleans_up(forge: Forge, cold: Path) -> None:
    before = finished_work(forge)
    killed = build_and_kill(
        forge, cold, "compile", "compiling graphs", child="cc1plus", by=signal.SIGINT
    )
    assert killed.exit_code == 130
    assert killed.ended == {"pull": "hit", "convert": "hit", "compile": "failed"}
    assert killed.stderr.endswith("interrupted; finished stages are kept\n")
    assert "Traceback" not in killed.stderr
    assert len(killed.children) >= 3
    wait_until_gone(killed.children, forge)
    assert scratch_left(forge) == []
    assert finished_work(forge) == before
