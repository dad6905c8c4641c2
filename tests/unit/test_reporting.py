"""What a run tells: log records with their run, artifacts of limited size, logs in the store."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from trtforge import run_log
from trtforge.artifacts import (
    MOST_BYTES,
    artifact_key,
    capped,
    capped_rows,
    log_summary,
    memory_rows,
    plan_rows,
)
from trtforge.engines.memory import MemoryPlan, MemoryRow
from trtforge.progress import StageEvent, listening
from trtforge.redaction import RedactingFilter
from trtforge.run_log import JsonLines, RunFilter, console_formatter, within
from trtforge.stages.history import History, PastStage
from trtforge.stages.run_logs import share_logs
from trtforge.store import Store

RUN, TASK, ENGINE = "1f3c0000-aaaa", "7a7a0000-bbbb", "0123456789abcdef" * 4
TOKEN = "hf_" + "QrStUvWxYzAbCdEfGhIjKlMnOpQrStUvWx"


# Log records


@dataclass
class Written:
    records: list[logging.LogRecord]
    stream: StringIO

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


class _Keeping(logging.StreamHandler[StringIO]):
    def __init__(self, written: Written) -> None:
        super().__init__(written.stream)
        self._written = written

    def emit(self, record: logging.LogRecord) -> None:
        self._written.records.append(record)
        super().emit(record)


@pytest.fixture
def written() -> Iterator[Written]:
    """What two handlers with both filters make of the records of two loggers, the first's."""
    kept = Written([], StringIO())
    handlers = [_Keeping(kept), _Keeping(Written([], StringIO()))]
    loggers = [logging.getLogger(name) for name in ("trtforge", "elsewhere")]
    for handler in handlers:
        handler.addFilter(RedactingFilter())
        handler.addFilter(RunFilter())
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
    yield kept
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
        for handler in handlers:
            logger.removeHandler(handler)


def test_a_record_of_the_library_says_run_stage_and_engine(written: Written) -> None:
    with within(run_id=RUN, task_run_id=TASK), within(stage="publish", engine_id=ENGINE):
        logging.getLogger("trtforge.store.upload").warning("%d%% sent", 50)
    [record] = written.records
    told = {name: getattr(record, name) for name in ("run_id", "stage", "engine_id")}
    assert told == {"run_id": RUN, "stage": "publish", "engine_id": ENGINE}
    assert written.lines == ["[1f3c0000 publish engine 0123456789ab] 50% sent"]
    # So that Prefect files it with the run, whichever thread it comes from.
    assert (record.__dict__["flow_run_id"], record.__dict__["task_run_id"]) == (RUN, TASK)


def test_records_of_others_are_marked_and_not_rewritten(written: Written) -> None:
    with within(run_id=RUN, stage="pull"):
        logging.getLogger("elsewhere").warning("as %s", "it was")
    assert written.lines == ["as it was"]
    assert written.records[0].__dict__["stage"] == "pull"
    assert not hasattr(written.records[0], "flow_run_id")


def test_outside_of_a_run_nothing_is_added(written: Written) -> None:
    with within(run_id=RUN):
        pass
    logging.getLogger("trtforge").warning("hello")
    assert written.lines == ["hello"]


def test_a_thread_of_the_only_run_belongs_to_it(written: Written) -> None:
    def log() -> None:
        logging.getLogger("trtforge").warning("from a thread")

    with within(run_id=RUN, stage="pull"):
        for _ in range(2):
            thread = threading.Thread(target=log)
            thread.start()
            thread.join()
    assert written.lines == ["[1f3c0000 pull] from a thread"] * 2


def test_a_thread_is_not_given_to_one_of_two_runs(written: Written) -> None:
    other = threading.Event()
    inside = threading.Event()

    def second() -> None:
        with within(run_id="another-run"):
            inside.set()
            other.wait(10)

    def log() -> None:
        logging.getLogger("trtforge").warning("whose?")

    with within(run_id=RUN):
        threads = [threading.Thread(target=second), threading.Thread(target=log)]
        threads[0].start()
        assert inside.wait(10)
        threads[1].start()
        threads[1].join()
        other.set()
        threads[0].join()
    assert written.lines == ["whose?"]


def test_json_lines_carry_the_fields_and_the_error_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(run_log.FORMAT_VARIABLE, "JSON")
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(console_formatter(format="%(message)s"))
    handler.addFilter(RedactingFilter())
    handler.addFilter(RunFilter())
    logger = logging.getLogger("trtforge.test")
    logger.addHandler(handler)
    try:
        with within(run_id=RUN, stage="pull"):
            try:
                raise ValueError(f"line one\n{TOKEN}")
            except ValueError:
                logger.exception('a "quoted" %s', "message")
    finally:
        logger.removeHandler(handler)
    [line] = stream.getvalue().splitlines()
    told = json.loads(line)
    assert told["message"] == 'a "quoted" message'
    assert (told["level"], told["run_id"], told["stage"]) == ("ERROR", RUN, "pull")
    assert told["error"].endswith("ValueError: line one\n***")
    assert told["time"].endswith("+00:00")
    assert "engine_id" not in told


def test_text_is_prefects_unless_json_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(run_log.FORMAT_VARIABLE, raising=False)
    formatter = console_formatter(format="%(levelname)s %(message)s")
    assert not isinstance(formatter, JsonLines)
    record = logging.makeLogRecord({"msg": "x", "levelname": "INFO"})
    assert formatter.format(record) == "INFO x"


# Artifacts


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_becomes_a_key_that_prefect_takes(text: str) -> None:
    from prefect.artifacts import Artifact

    assert Artifact(key=artifact_key(text)).key == artifact_key(text)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=200), st.just("````text"), st.just("é" * 300)), max_size=40
    ),
    st.integers(300, 3000),
)
def test_markdown_never_exceeds_its_limit_and_is_whole_below_it(
    lines: list[str], most_bytes: int
) -> None:
    markdown = "\n".join(lines)
    shown = capped(markdown, most_bytes)
    assert len(shown.encode()) <= most_bytes
    if len(markdown.encode()) <= most_bytes:
        assert shown == markdown
    else:
        assert "Cut here" in shown.splitlines()[-1]


def test_a_cut_is_seen_outside_of_the_code_block_it_fell_into() -> None:
    cut = capped("# Log\n\n````text\n" + "a line\n" * 200_000 + "````\n")
    assert len(cut.encode()) <= MOST_BYTES
    tokens = MarkdownIt().parse(cut)
    assert [t.type for t in tokens if t.type == "fence"] == ["fence"]
    assert tokens[-2].type == "inline"
    assert "524 kB of 1.4 MB are shown" in tokens[-2].content


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.text(max_size=50), min_size=1), max_size=60)
)
def test_rows_never_exceed_their_limit_and_say_how_many_are_missing(
    rows: list[dict[str, str]],
) -> None:
    shown = capped_rows(rows, 1000)
    assert len(json.dumps(shown).encode()) <= 1000
    if len(shown) < len(rows) or shown != rows:
        kept = len(shown) - 1
        assert shown[:kept] == rows[:kept]
        assert f"{len(rows) - kept} more rows" in "".join(shown[-1].values())


@dataclass(frozen=True)
class Stage:
    stage: str
    status: str
    detail: str = ""


HISTORY = History(
    (
        PastStage("pull", 60, 1_000),
        PastStage("convert", 30, 1_000),
        PastStage("compile", 600, 1_100, "trtllm", "NVIDIA H200"),
        PastStage("compile", 60, 1_000, "aoti", None),
    )
)


def test_the_plan_tells_hits_bytes_and_minutes() -> None:
    stages = [Stage("pull", "in store", "made yesterday"), Stage("convert", "to do"),
              Stage("compile", "follows"), Stage("benchmark", "follows")]  # fmt: skip
    rows, told = plan_rows(
        stages, model_bytes=2_000_000, backend="trtllm", gpu="NVIDIA H200", history=HISTORY
    )
    table = [(row["Stage"], row["Status"], row["Bytes"], row["Minutes (estimate)"]) for row in rows]
    assert table == [
        ("pull", "in store", "—", "—"),
        ("convert", "to do", "2.0 MB", "0.5"),
        ("compile", "follows", "2.0 MB", "10.0"),
        ("benchmark", "follows", "—", "?"),
    ]
    assert told == (
        "3 of 4 stages to do, "
        "10.5 minutes by an estimate from earlier builds, and what is not known"
    )
    assert plan_rows(stages[:1], model_bytes=1)[1] == "nothing to do"
    assert "no earlier build" in plan_rows(stages, model_bytes=1, history=History(()))[1]


def test_the_preflight_table_has_each_part_and_the_sums() -> None:
    plan = MemoryPlan(
        rank=0,
        ranks=1,
        rows=(
            MemoryRow("gpu", "weights", 14_000_000_000, True, "tensors"),
            MemoryRow("gpu", "KV cache", 70_000_000_000, False, "2 · layers"),
            MemoryRow("disk", "engine", 14_000_000_000, False, "weights"),
        ),
        gpu_bytes=80_000_000_000,
        host_bytes=None,
        disk_bytes=20_000_000_000,
        max_batch_size=4,
        max_seq_len=2048,
        asked={},
    )
    rows = memory_rows(plan)
    assert rows[0] == {
        "Of": "GPU", "What": "weights", "Size": "14.0 GB", "": "exact", "Formula": "tensors"
    }  # fmt: skip
    sums = {row["Of"]: (row["Size"], row[""]) for row in rows if row["What"] == "in all"}
    assert sums == {
        "GPU": ("84.0 GB", "too much"),
        "disk": ("14.0 GB", "fits"),
    }


def test_the_summary_of_a_log_has_its_address_its_complaints_and_its_end() -> None:
    log = "\n".join(
        ["start", "[W] slow tactic", *["step"] * 200, "Error: out of memory", "````", "end"]
    )
    summary = log_summary(log, where="s3://b/runs/x/logs/compile/build.log", lines=3)
    blocks = [token.content for token in MarkdownIt().parse(summary) if token.type == "fence"]
    assert blocks == [
        "[W] slow tactic\nError: out of memory\n",
        "Error: out of memory\n````\nend\n",
    ]
    assert summary.startswith("205 lines; all of them: `s3://b/runs/x/logs/compile/build.log`")


# Logs in the store


def _store(s3: Any, tmp_path: Path) -> Store:
    return Store(s3.client, s3.bucket, tmp_path / "cache")


def test_a_log_is_kept_with_the_run_without_its_secrets(s3: Any, tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text(f"downloading with {TOKEN}\ndone\n")
    (tmp_path / "empty.log").touch()
    events: list[StageEvent] = []
    with listening(events.append):
        [where] = share_logs(
            _store(s3, tmp_path),
            RUN,
            "compile",
            [log, tmp_path / "gone.log", tmp_path / "empty.log"],
            failed=False,
        )
    assert where == f"s3://{s3.bucket}/runs/{RUN}/logs/compile/build.log"
    kept = s3.client.get_object(Bucket=s3.bucket, Key=f"runs/{RUN}/logs/compile/build.log")
    assert kept["Body"].read() == b"downloading with ***\ndone\n"
    [event] = events
    assert (event.kind, event.message, event.facts) == (
        "log", "downloading with ***\ndone\n", {"log": where}
    )  # fmt: skip


def test_a_log_without_a_run_or_without_a_store_is_announced_all_the_same(
    s3: Any, tmp_path: Path
) -> None:
    log = tmp_path / "build.log"
    log.write_text("hello")
    events: list[StageEvent] = []
    with listening(events.append):
        assert share_logs(_store(s3, tmp_path), None, "compile", [log], failed=True) == ()
        missing = Store(s3.client, "no-such-bucket-here", tmp_path / "other")
        assert share_logs(missing, RUN, "compile", [log], failed=True) == ()
    assert [(event.message, event.facts) for event in events] == [("hello", {})] * 2


def test_a_huge_log_keeps_its_beginning_and_its_end(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtforge.stages.run_logs._MOST_BYTES", 4096)
    log = tmp_path / "build.log"
    log.write_text("".join(f"line {n} {TOKEN}\n" for n in range(1000)))
    share_logs(_store(s3, tmp_path), RUN, "compile", [log], failed=False)
    kept = s3.client.get_object(Bucket=s3.bucket, Key=f"runs/{RUN}/logs/compile/build.log")
    text = kept["Body"].read().decode()
    assert text.startswith("line 0 ***\n")
    assert text.endswith("line 999 ***\n")
    assert "are left out here" in text
    assert "QrSt" not in text


# Events


def test_without_a_server_an_event_is_no_error() -> None:
    from tasks.events import emit_gate_failed, emit_regression

    verdicts: list[dict[str, Any]] = [
        {"passed": False, "reason": "x" * 100_000, "prompt": n} for n in range(9)
    ]
    emit_gate_failed("tiny", {"backend": "aoti"}, verdicts)
    emit_regression(
        "tiny", engine_id="a" * 64, than_engine_id="b" * 64, alias="prod",
        metric="output_tokens_per_s", before=0.0, now=1.0, allowed=0.05,
    )  # fmt: skip
