"""The engine card: markdown that a person reads in the Prefect UI and in the terminal."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from markdown_it import MarkdownIt

from tasks.events import published_payload
from trtforge.benchmark.metrics import Measurement
from trtforge.card import StageLine, benchmark_rows, engine_card
from trtforge.engines.base import Toolchain
from trtforge.files import FileRef
from trtforge.spec import parse_spec
from trtforge.store import Manifest, ManifestCore, ModelIdentity, Parents

LOCATION = "s3://bucket/manifests/x.json"
TOOLCHAIN = Toolchain(
    backend="aoti",
    backend_version="2.13.0",
    tensorrt_version=None,
    cuda_version=None,
    driver_version=None,
    gpu_name=None,
    compute_capability=None,
    cpu="x86_64 avx2",
    compiler="g++ 12.2.0",
    os="linux",
    arch="x86_64",
    image_digest=None,
)
EFFECTIVE: dict[str, Any] = {
    "max_batch_size": 4,
    "max_input_len": 384,
    "max_seq_len": 500,
    "max_num_tokens": 1024,
    "device": "cpu",
    "kv_cache_type": "CONTINUOUS",
    "graphs": ["decode", "prefill"],
}


def measurement(concurrency: int, ttft_s: float, itl_s: float, per_s: float) -> dict[str, Any]:
    return asdict(Measurement(concurrency, 128, 32, 3, ttft_s, itl_s, per_s, per_s, per_s))


BENCHMARK: dict[str, Any] = {
    "engine": [measurement(1, 0.05, 0.0102, 80.0), measurement(4, 0.2, 0.02, 160.0)],
    "eager": [measurement(1, 0.1, 0.02, 40.0), measurement(4, 0.15, 0.016, 200.0)],
    "machine": {"cpu": "EPYC", "cores": 2, "gpu": None, "backend": "aoti 2.13.0"},
}
ANSWER = {"prompt": "How?", "text": "Un, deux,\ntrois.", "tokens": 7, "seconds": 0.25}


FILES = (FileRef("rank0.pt2", 1_500_000, "a" * 64), FileRef("LICENSE", 1, "b" * 64))


def manifest(
    *,
    source: str = "hf://acme/tiny@main",
    licence: str | None = "apache-2.0",
    benchmark: dict[str, Any] | None = BENCHMARK,
    files: tuple[FileRef, ...] = FILES,
    **toolchain: Any,
) -> Manifest:
    core = ManifestCore(
        model=ModelIdentity(
            name="tiny", source=source, revision="c0ffee", content_digest="aa", licence=licence
        ),
        spec=parse_spec({"model": {"source": source}}).model_dump(mode="json"),
        config=EFFECTIVE,
        toolchain={**TOOLCHAIN.to_json(), **toolchain},
        files=files,
        parents=Parents(source="aa", checkpoint="bb"),
        gates={"correctness": {"passed": True}},
    )
    return Manifest.of(core, benchmark=benchmark)


def test_the_log_of_a_stage_is_named_below_the_table() -> None:
    stages = [
        StageLine("pull", True, 0.1, "1 MB"),
        StageLine("compile", False, 70.0, "compiled cold", log="s3://b/runs/r/logs/compile/x.log"),
    ]
    card = engine_card(manifest(), location=LOCATION, stages=stages)
    assert "- log of compile: `s3://b/runs/r/logs/compile/x.log`\n" in card
    assert "log of pull" not in card
    [how] = [table for table in tables(card) if table[0][0] == "Stage"]
    assert [row[0] for row in how] == ["Stage", "pull", "compile"]


def test_the_event_of_a_published_engine_tells_what_a_receiver_acts_on() -> None:
    engine = manifest()
    payload = published_payload(engine, LOCATION, {"prod": False, "latest": True})
    told = {name: payload[name] for name in ("engine_id", "model", "revision", "backend", "gpu")}
    assert told == {
        "engine_id": engine.engine_id,
        "model": "tiny",
        "revision": "c0ffee",
        "backend": "aoti",
        "gpu": "cpu-x86-64-avx2",
    }
    assert (payload["aliases"], payload["moved"]) == (["latest", "prod"], ["latest"])
    # The best throughput is the second one's: 160 at a concurrency of 4, where eager has 200.
    assert (payload["concurrency"], payload["output_tokens_per_s"]) == (4, 160.0)
    assert payload["over_eager"] == 0.8
    assert "output_tokens_per_s" not in published_payload(manifest(benchmark=None), LOCATION, {})


def tables(card: str) -> list[list[list[str]]]:
    """The card's tables as a markdown reader sees them: cells of rows, the header first."""
    found: list[list[list[str]]] = []
    cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(card):
        match token.type:
            case "table_open":
                found.append([])
            case "tr_open":
                found[-1].append([])
            case "th_open" | "td_open":
                cell = True
            case "inline" if cell:
                text = "".join(child.content for child in token.children or [])
                found[-1][-1].append(text)
                cell = False
    return found


def facts(card: str) -> Mapping[str, str]:
    return dict(row for row in tables(card)[0] if len(row) == 2)


def test_it_says_which_engine_this_is_and_where_it_is_valid() -> None:
    engine = manifest()
    card = engine_card(engine, location=LOCATION, aliases=["latest", "prod"])
    assert LOCATION in card.splitlines()
    shown = facts(card)
    assert shown["Engine id"] == engine.engine_id
    assert shown["Aliases"] == "latest, prod"
    assert shown["Model"] == "tiny from hf://acme/tiny@main"
    assert shown["Licence"] == "apache-2.0"
    assert shown["Backend"] == "aoti 2.13.0"
    assert shown["Valid on"] == "CPU x86_64 avx2"
    assert shown["Size"] == "2 files, 1.5 MB"
    gpu = facts(engine_card(manifest(gpu_name="NVIDIA H200"), location=LOCATION))
    assert gpu["Valid on"] == "NVIDIA H200"
    assert gpu["Aliases"] == "none"


def test_an_unknown_licence_is_not_passed_over() -> None:
    shown = facts(engine_card(manifest(licence=None), location=LOCATION))
    assert shown["Licence"] == "see LICENSE"
    shown = facts(engine_card(manifest(licence=None, files=FILES[:1]), location=LOCATION))
    assert shown["Licence"] == "not stated by the source"


def test_what_was_asked_for_stands_beside_what_took_effect() -> None:
    rows = tables(engine_card(manifest(), location=LOCATION))[1]
    assert rows[0] == ["Setting", "Asked for", "In effect"]
    assert ["max_seq_len", "512", "500"] in rows
    assert ["device", "auto", "cpu"] in rows
    assert ["kv_cache_type", "—", "CONTINUOUS"] in rows


def test_the_engine_is_measured_beside_eager() -> None:
    rows = benchmark_rows(BENCHMARK)
    assert rows[0] == {
        "Concurrency": "1",
        "Output tokens/s": "80.0",
        "eager tokens/s": "40.0",
        "Ratio": "2.00×",
        "TTFT": "50 ms",
        "eager TTFT": "100 ms",
        "ITL": "10.2 ms",
        "eager ITL": "20.0 ms",
    }
    assert list(rows[0])[:4] == ["Concurrency", "Output tokens/s", "eager tokens/s", "Ratio"]
    assert rows[1]["Ratio"] == "0.80×"
    card = engine_card(manifest(), location=LOCATION)
    assert tables(card)[2] == [list(rows[0]), *(list(row.values()) for row in rows)]
    assert "128 tokens in, 32 out" in card
    assert "median of 3 runs on EPYC, 2 cores (aoti 2.13.0)" in card
    assert "ttft_s = first token - request start" in card


def test_an_engine_without_numbers_has_a_card_too() -> None:
    card = engine_card(manifest(benchmark=None), location=LOCATION)
    assert "Benchmark" not in card
    assert "answers" not in card
    assert "How it was made" not in card


def test_the_build_and_the_answer_are_told_where_they_are_known() -> None:
    stages = [
        StageLine("pull", True, 0.04, "7 files"),
        StageLine("compile", False, 26.06, "compiled cold in 25.0 s"),
    ]
    card = engine_card(manifest(), location=LOCATION, answer=ANSWER, stages=stages)
    assert tables(card)[3][1:] == [
        ["pull", "found", "0.0 s", "7 files"],
        ["compile", "made", "26.1 s", "compiled cold in 25.0 s"],
    ]
    assert "**How?**" in card
    assert "> Un, deux,\n> trois." in card
    assert "7 tokens in 0.2 s" in card


def test_no_text_breaks_out_of_its_cell() -> None:
    stages = [StageLine("pull", False, 1.0, "a | b\nc")]
    card = engine_card(manifest(source="/models/a|b"), location=LOCATION, stages=stages)
    assert facts(card)["Model"] == "tiny from /models/a|b"
    assert tables(card)[3][1] == ["pull", "made", "1.0 s", "a | b c"]


def test_the_toolchain_is_told_as_far_as_it_is_known() -> None:
    shown = facts(engine_card(manifest(), location=LOCATION))
    assert shown["System"] == "linux x86_64"
    assert shown["Commit"] == "c0ffee"
    assert shown["Gates"] == "correctness passed"
    assert not {"TensorRT", "CUDA", "Driver", "Compute capability", "Image"} & set(shown)
    known = {
        "gpu_name": "NVIDIA H200",
        "compute_capability": "9.0",
        "cuda_version": "13.0",
        "driver_version": "580.65.06",
        "tensorrt_version": "10.14.1",
        "image_digest": "sha256:" + "d" * 64,
    }
    shown = facts(engine_card(manifest(**known), location=LOCATION))
    assert shown["TensorRT"] == "10.14.1"
    assert shown["CUDA"] == "13.0"
    assert shown["Driver"] == "580.65.06"
    assert shown["Compute capability"] == "9.0"
    assert shown["Image"] == "sha256:" + "d" * 64
