"""`trtforge bench`, `bench report` and `compare`, and the flow, on an engine that was built."""

import json
from pathlib import Path

import pytest
from forge import Build, Forge

from trtforge.benchmark.report import PAGE_FILE, REPORT_FILE, SHORT_FILE
from trtforge.benchmark.sample import RAW_FILE, read_samples
from trtforge.store.benchmarks import Benchmarks

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
        history = Benchmarks(forge.store.bucket).of(engine_id)
        assert run in [record.run_id for record in history]

    def test_an_engine_equals_itself(
        self, forge: Forge, engine_id: str, bench: dict[str, object]
    ) -> None:
        assert bench["engine_id"] == engine_id
        told = forge.json("compare", engine_id, engine_id)
        assert told["comparable"] is True
        assert {row["change"] for row in told["rows"]} == {0.0}

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
