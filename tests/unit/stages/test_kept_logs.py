"""A stage that fails takes its scratch directory along, but not the log that its error names."""

import dataclasses
from pathlib import Path

import pytest

from trtforge.errors import BuildError
from trtforge.progress import OnProgress, StageEvent, listening
from trtforge.stages.kept_logs import keep_logs
from trtforge.stages.stage import Made, Workshop, run_stage


def failing(scratch: Path, _: OnProgress) -> Made:
    (scratch / "weights.bin").write_bytes(b"large")
    (scratch / "build_driver.log").write_text("what went wrong\n")
    raise BuildError("no luck", remedy=f"The log is {scratch / 'build_driver.log'}")


def test_the_log_stays_where_the_error_says(shop: Workshop) -> None:
    with pytest.raises(BuildError) as caught:
        run_stage(shop, "compile", {"engine": 1}, failing, lambda _: "")
    named = Path(caught.value.remedy.removeprefix("The log is "))
    assert named.read_text() == "what went wrong\n"
    assert [path.name for path in shop.work_root.iterdir() if path.is_dir()] == ["logs"]


def test_the_next_failure_replaces_it(shop: Workshop) -> None:
    for _ in range(2):
        with pytest.raises(BuildError):
            run_stage(shop, "compile", {"engine": 1}, failing, lambda _: "")
    assert len(list((shop.work_root / "logs").rglob("*.log"))) == 1


def test_without_a_log_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    error = BuildError("no luck", remedy="Try again")
    keep_logs(tmp_path / "scratch", error)
    assert list(tmp_path.iterdir()) == [tmp_path / "scratch"]
    assert error.remedy == "Try again"


def test_the_log_is_kept_with_the_run_and_told_to_whoever_listens(shop: Workshop) -> None:
    shop = dataclasses.replace(shop, run_id="run-1")
    told: list[StageEvent] = []
    with listening(told.append), pytest.raises(BuildError):
        run_stage(shop, "compile", {"engine": 1}, failing, lambda _: "")
    kept = shop.store.bucket.get("runs/run-1/logs/compile/build_driver.log")
    assert kept is not None
    assert kept.data == b"what went wrong\n"
    assert [(e.kind, e.message) for e in told if e.kind == "log"] == [("log", "what went wrong\n")]
