"""`trtforge bench`, `bench report` and `compare`, and the flow, on an engine that was built."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from forge import Build, Forge, prefect_http
from prefect import State
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from trtforge.benchmark.report import PAGE_FILE, REPORT_FILE, SHORT_FILE
from trtforge.benchmark.sample import RAW_FILE, read_samples
from trtforge.stack import StackInfo
from trtforge.store.aliases import AliasUnknownError
from trtforge.store.benchmarks import BenchmarkRecord, Benchmarks
from trtforge.store.records import now

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine_id(built: Build) -> str:
    return str(built.result["engine_id"])


@pytest.fixture(scope="module")
def bench(forge: Forge, engine_id: str) -> dict[str, object]:
    """A benchmark of the engine with another workload than it was built with."""
    told: dict[str, object] = forge.json(
        "bench", engine_id, "--workload", "12/6", "--repeats", "2", "--requests", "3",
        "--ttft-ms", "60000", "--hourly-price", "1.5",
    )  # fmt: skip
    return told


def test_a_build_leaves_page_raw_data_and_short_form_with_the_engine(
    forge: Forge, engine_id: str, tmp_path: Path
) -> None:
    evidence = {ref.path: ref for ref in forge.store.get_manifest(engine_id).evidence}
    assert {PAGE_FILE, REPORT_FILE, SHORT_FILE, RAW_FILE, "answers.jsonl"} <= set(evidence)
    for ref in evidence.values():
        forge.store.get_file(ref.sha256, ref.size_bytes, tmp_path / ref.path)
    samples = read_samples((tmp_path / RAW_FILE).read_text().splitlines())
    assert {s.who for s in samples} == {"engine", "eager"}
    assert {(s.input_tokens, len(s.token_s), s.status) for s in samples} == {(16, 8, "ok")}
    assert (tmp_path / PAGE_FILE).read_text().startswith("<!doctype html>")


def test_the_report_is_computed_again_from_the_raw_data(
    forge: Forge, engine_id: str, tmp_path: Path
) -> None:
    told = forge.json("bench", "report", engine_id, "--html", tmp_path / "page.html")
    assert told["same_as_kept"] is True
    assert told["requests"] > 0
    assert "<svg" in (tmp_path / "page.html").read_text()


class TestMeasuringAgain:
    def test_both_sides_are_measured_and_held_against_the_limit(
        self, bench: dict[str, object]
    ) -> None:
        summary = json.loads(json.dumps(bench["summary"]))
        for point in summary["points"]:
            assert point["counts"] == {"ok": 6, "short": 0, "failed": 0, "timed-out": 0}
            assert (point["input_tokens"], point["output_tokens"]) == (12, 6)
            assert point["intervals"]["goodput_per_s"]["mean"] > 0
            assert point["intervals"]["cost_per_million_tokens"]["mean"] > 0
            assert point["distributions"]["ttft_s"]["percentiles"]["p99"] is None
        assert [p["who"] for p in summary["points"]] == ["engine", "eager"]
        limits = json.loads(json.dumps(bench["limits"]))
        assert limits["rates"]["copy_bytes_per_s"] > 0
        assert limits["points"][0]["output_tokens_per_s"] > 0

    def test_it_is_kept_and_reported_again(
        self, forge: Forge, engine_id: str, bench: dict[str, object]
    ) -> None:
        run = str(bench["run"])
        assert forge.json("bench", "report", run)["same_as_kept"] is True
        assert forge.run("bench", "report", run).stdout.startswith("# tiny-first on CPU\n")
        history = Benchmarks(forge.store.bucket).of(engine_id)
        assert run in [record.run_id for record in history]

    def test_an_engine_equals_itself(
        self, forge: Forge, engine_id: str, bench: dict[str, object]
    ) -> None:
        assert bench["engine_id"] == engine_id
        told = forge.json("compare", engine_id, engine_id)
        assert told["comparable"] is True
        assert {row["change"] for row in told["rows"]} == {0.0}
        assert told["runs"] == [bench["run"]] * 2
        assert f"in run {bench['run']}" in forge.run("compare", engine_id, engine_id).stdout

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--workload", "chat"], "the engine takes prompts of 48 tokens at most"),
            (["--workload", "40/90"], "the engine takes 96 tokens in a sequence, this is 130"),
            (["--workload", "chatter"], "benchmark.workload.name = 'chatter'"),
            (["--workload", "4/x"], "these are not two numbers of tokens"),
            (["--concurrency", "2"], "the engine takes 1 to 1 sequences at once"),
            (["--concurrency", "two"], "these are not whole numbers"),
            (["--prompts", "none.jsonl"], "need the answers' told"),
        ],
    )
    def test_what_the_engine_does_not_hold_is_refused(
        self, forge: Forge, engine_id: str, options: list[str], problem: str
    ) -> None:
        done = forge.run("bench", engine_id, *options)
        assert done.returncode == 2, done.stderr
        assert problem in " ".join(done.stderr.split())


def test_prompts_of_your_own(forge: Forge, engine_id: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"token_ids": [5, 6, 7]}\n{"token_ids": [8, 9, 10, 11]}\n')
    told = forge.json(
        "bench", engine_id, "--prompts", mine, "--output-tokens", "4", "--repeats", "2",
        "--no-eager",
    )  # fmt: skip
    (point,) = told["summary"]["points"]
    assert (point["input_tokens"], point["output_tokens"]) == (3.5, 4)


@pytest.fixture(scope="module")
def twice(
    prefect_client: SyncPrefectClient, forge: Forge, built: Build
) -> list[tuple[State[Any], BenchmarkRecord]]:
    """The engine in use, measured two times; nobody can be so slow that it is a regression."""
    assert prefect_client.api_version()
    return [measured(forge, built.model.name, allowed=0.99) for _ in range(2)]


@pytest.mark.usefixtures("prefect_client")
class TestTheFlow:
    """benchmark-engine on the stack's server: history, trend, and the event of a regression."""

    def test_each_run_is_in_the_history_of_the_engine(
        self, forge: Forge, twice: list[tuple[State[Any], BenchmarkRecord]]
    ) -> None:
        (_, first), (_, second) = twice
        kept = [record.run_id for record in Benchmarks(forge.store.bucket).of(first.engine_id)]
        assert kept[-2:] == [first.run_id, second.run_id]
        assert first.by.startswith("flow run ")
        assert first.by != second.by
        assert (first.workload, first.boundary) == ("12/4", "in process")
        assert forge.json("bench", "report", second.run_id)["same_as_kept"] is True

    def test_the_run_shows_report_and_trend(
        self, prefect_client: SyncPrefectClient, twice: list[tuple[State[Any], BenchmarkRecord]]
    ) -> None:
        (_, first), (state, second) = twice
        assert (state.is_completed(), state.message) == (True, "No regression")
        shown = artifacts(prefect_client, state)
        assert "# tiny-first on CPU" in shown["benchmark-report"]
        trend = shown["benchmark-trend"]
        assert "No regression." in trend
        assert "![" in trend
        rows = [line for line in trend.splitlines() if "`bench-" in line]
        assert [row.count(second.run_id) for row in rows[:2]] == [1, 0]
        assert first.run_id in rows[1]

    def test_slower_than_it_was_is_an_event(
        self,
        prefect_client: SyncPrefectClient,
        forge: Forge,
        built: Build,
        stack: StackInfo,
        twice: list[tuple[State[Any], BenchmarkRecord]],
    ) -> None:
        """Its last three benchmarks are made up, and a thousand times as quick."""
        _, usual = twice[-1]
        (point,) = usual.points
        quick = {n: v.model_copy(update={"mean": v.mean * 1e3}) for n, v in point.values.items()}
        told = {"points": (point.model_copy(update={"values": quick}),)}
        history = Benchmarks(forge.store.bucket)
        made_up = [
            history.put(usual.model_copy(update={**told, "at": now(), "run_id": f"made-up-{n}"}))
            for n in range(3)
        ]
        try:
            state, record = measured(forge, built.model.name, allowed=0.05)
        finally:
            for key in made_up:
                forge.store.bucket.delete(key)
        assert state.is_completed()
        assert "output_tokens_per_s at concurrency 1 is " in state.message
        assert "(median of 5), and 5% less are allowed" in state.message
        assert "**Regression: " in artifacts(prefect_client, state)["benchmark-trend"]
        payload = regression(stack, str(state.state_details.flow_run_id))
        assert (payload["model"], payload["alias"]) == (built.model.name, "latest")
        assert payload["engine_id"] == payload["than_engine_id"] == record.engine_id
        assert payload["change"] < -0.9

    def test_an_engine_that_nobody_points_at_is_named(self, forge: Forge, built: Build) -> None:
        with pytest.raises(AliasUnknownError, match="nightly"):
            measured(forge, built.model.name, alias="nightly")


def measured(forge: Forge, model: str, **parameters: Any) -> tuple[State[Any], BenchmarkRecord]:
    """A run of the flow in this process, and what it left in the engine's history."""
    from flows.benchmark_engine import benchmark_engine

    load = {"workload": {"input_tokens": 12, "output_tokens": 4}, "repeats": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTFORGE_HOME", str(forge.home))
        state: Any = benchmark_engine(model=model, benchmark=load, **parameters, return_state=True)
    if not state.is_completed():
        raise state.result(raise_on_failure=False)
    by = f"flow run {state.state_details.flow_run_id}"
    ((_, pointer),) = [a for a in forge.store.list_aliases(model) if a[0].alias == "latest"]
    records = Benchmarks(forge.store.bucket).of(pointer.engine_id)
    return state, next(record for record in records if record.by == by)


def artifacts(client: SyncPrefectClient, state: State[Any]) -> dict[str, str]:
    """The markdown that a run left, by key."""
    run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=run))
    return {str(artifact.key): str(artifact.data) for artifact in found}


def regression(stack: StackInfo, flow_run_id: str) -> dict[str, Any]:
    """What the event of a regression says, once the server has it."""
    wanted = {"filter": {"event": {"name": ["trtforge.regression"]}}}
    deadline = time.monotonic() + 60
    with prefect_http(stack) as http:
        while time.monotonic() < deadline:
            for event in (
                http.post("events/filter", json=wanted).raise_for_status().json()["events"]
            ):
                if flow_run_id in json.dumps(event["related"]):
                    payload: dict[str, Any] = event["payload"]
                    return payload
            time.sleep(0.5)
    raise AssertionError("the event did not come")
