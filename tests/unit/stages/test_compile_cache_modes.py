"""The timing cache of a toolchain: who starts from it, who adds to it, and what is recorded.

The backend here acts: it "compiles" in no time, but keeps a real `model.cache` of the aoti format.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trtforge.engines.aoti.backend import AotiBackend
from trtforge.engines.aoti.compile_cache import CompileCache, CompileCacheFormat, Entry
from trtforge.engines.base import BuildOutcome, Toolchain
from trtforge.files import FileRef, describe_directory
from trtforge.spec import BuildSpec, parse_spec
from trtforge.stages import compile as compile_stage
from trtforge.stages.compile import compile_engine, compile_inputs, timing_cache_use
from trtforge.stages.stage import StageOutcome, Workshop
from trtforge.store import TimingCacheUse
from trtforge.store.layout import timing_key

TOOLCHAIN = Toolchain(
    backend="aoti",
    backend_version="2.13.0+cpu",
    tensorrt_version=None,
    cuda_version=None,
    driver_version=None,
    gpu_name=None,
    compute_capability=None,
    cpu="x86_64 avx2",
    compiler="g++ 13",
    os="linux",
    arch="x86_64",
    image_digest=None,
)


class ActingBackend(AotiBackend):
    """Compiles one graph, named after the engine's longest sequence."""

    def build(self, engine: Any, **asked: Any) -> BuildOutcome:
        cache, complaint = CompileCache(toolchain=asked["toolchain"].key()), ""
        if asked["cache_in"]:
            cache, complaint = CompileCache.load(asked["cache_in"], cache.toolchain)
        graph = f"decode-{engine.max_seq_len}"
        known = cache.get(graph) is not None
        cache.put(graph, Entry(graph, 1.0, {"a.so": graph.encode()}))
        cache.save(asked["cache_out"])
        asked["engine_dir"].mkdir()
        (asked["engine_dir"] / "rank0.pt2").write_text(graph)
        return BuildOutcome(
            files=tuple(describe_directory(asked["engine_dir"])),
            effective={},
            cache="warm" if known else "cold",
            steps=(),
            seconds=1.0,
            peak_rss_bytes=1,
            warnings=(f"model.cache: {complaint}",) if complaint else (),
        )


@pytest.fixture(autouse=True)
def _acting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_stage, "open_backend", lambda *_: ActingBackend())


@pytest.fixture
def checkpoint(shop: Workshop) -> list[FileRef]:
    return [shop.store.put_bytes(b"weights", "rank0.safetensors")]


def spec(mode: str = "read-write", max_seq_len: int = 512) -> BuildSpec:
    engine = {"max_seq_len": max_seq_len, "timing_cache": mode}
    return parse_spec({"model": {"source": "hf://org/name"}, "engine": engine})


def build(
    shop: Workshop, checkpoint: Sequence[FileRef], mode: str = "read-write", max_seq_len: int = 512
) -> StageOutcome:
    return compile_engine(shop, spec(mode, max_seq_len), checkpoint, TOOLCHAIN)


def use(outcome: StageOutcome) -> TimingCacheUse:
    assert not outcome.hit
    return timing_cache_use(outcome.result)


def newest(shop: Workshop, tmp_path: Path) -> FileRef | None:
    return shop.store.get_timing_cache(TOOLCHAIN.key(), tmp_path / "newest" / "model.cache")


def test_the_first_build_misses_and_shares_and_the_next_one_hits(
    shop: Workshop, checkpoint: list[FileRef], tmp_path: Path
) -> None:
    first = use(build(shop, checkpoint, max_seq_len=512))
    assert first == TimingCacheUse(
        sha256=None, outcome="miss", mode="read-write", entries_before=None, entries_after=1
    )
    shared = newest(shop, tmp_path)
    assert shared
    # Another engine, whose graph the first one compiled too.
    other = [shop.store.put_bytes(b"other weights", "rank0.safetensors")]
    assert use(build(shop, other, max_seq_len=512)) == TimingCacheUse(
        sha256=shared.sha256, outcome="hit", mode="read-write", entries_before=1, entries_after=1
    )
    grown = use(build(shop, checkpoint, max_seq_len=600))
    assert (grown.outcome, grown.entries_before, grown.entries_after) == ("miss", 1, 2)


def test_read_starts_from_it_and_leaves_it_as_it_was(
    shop: Workshop, checkpoint: list[FileRef], tmp_path: Path
) -> None:
    build(shop, checkpoint, max_seq_len=512)
    before = newest(shop, tmp_path)
    assert before
    read = use(build(shop, checkpoint, "read", max_seq_len=600))
    assert (read.mode, read.sha256, read.entries_after) == ("read", before.sha256, 2)
    assert newest(shop, tmp_path) == before


def test_off_compiles_cold_and_shares_nothing(
    shop: Workshop, checkpoint: list[FileRef], tmp_path: Path
) -> None:
    alone = use(build(shop, checkpoint, "off", max_seq_len=512))
    assert (alone.mode, alone.outcome, alone.sha256) == ("off", "miss", None)
    assert newest(shop, tmp_path) is None
    build(shop, checkpoint, max_seq_len=600)
    other = [shop.store.put_bytes(b"other weights", "rank0.safetensors")]
    assert use(build(shop, other, "off", max_seq_len=600)).outcome == "miss"


def test_an_engine_that_one_mode_made_is_found_in_every_mode(
    shop: Workshop, checkpoint: list[FileRef]
) -> None:
    made = build(shop, checkpoint, "off")
    for mode in ("read", "read-write", "off"):
        assert build(shop, checkpoint, mode).hit
        assert compile_inputs(checkpoint, spec(mode), TOOLCHAIN) == made.result.inputs


@pytest.mark.parametrize("how", ["rubbish", "another toolchain's", "head is no JSON"])
def test_a_bad_one_costs_a_cold_build_and_a_warning_and_is_replaced(
    shop: Workshop,
    checkpoint: list[FileRef],
    s3: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    planted = tmp_path / "planted.cache"
    if how == "rubbish":
        planted.write_bytes(b"PK and then nothing sensible")
    else:
        graph = Entry("decode-512", 1.0, {"a.so": b"for another processor"})
        CompileCache({"decode-512": graph}, "another").save(planted)
    shop.store.put_timing_cache(TOOLCHAIN.key(), planted)
    if how == "head is no JSON":
        head = {"Bucket": s3.bucket, "Key": timing_key(TOOLCHAIN.key())}
        s3.client.put_object(**head, Body=b"{")
    with caplog.at_level(logging.WARNING):
        built = use(build(shop, checkpoint))
    assert (built.outcome, built.entries_after) == ("miss", 1)
    warning = {
        "rubbish": "model.cache: unreadable cache, using a fresh one",
        "another toolchain's": "model.cache: cache of another toolchain, using a fresh one",
        "head is no JSON": "building without a timing cache",
    }[how]
    assert warning in caplog.text
    other = [shop.store.put_bytes(b"other weights", "rank0.safetensors")]
    assert use(build(shop, other)).outcome == "hit"


def test_a_cache_that_cannot_be_shared_does_not_cost_the_engine(
    shop: Workshop, checkpoint: list[FileRef], s3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    head = {"Bucket": s3.bucket, "Key": timing_key(TOOLCHAIN.key())}
    s3.client.put_object(**head, Body=b'{"format": 2}')
    with caplog.at_level(logging.WARNING):
        assert use(build(shop, checkpoint)).outcome == "miss"
    assert "model.cache is not shared with other builds" in caplog.text
    assert s3.client.get_object(**head)["Body"].read() == b'{"format": 2}'


def test_what_other_builders_added_while_this_one_compiled_is_kept(
    shop: Workshop,
    checkpoint: list[FileRef],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Overtaken(ActingBackend):
        def build(self, engine: Any, **asked: Any) -> BuildOutcome:
            theirs = tmp_path / "theirs.cache"
            graph = Entry("prefill", 1.0, {"b.so": b"theirs"})
            CompileCache({"prefill": graph}, TOOLCHAIN.key()).save(theirs)
            shop.store.timing.put(TOOLCHAIN.key(), theirs, cache_format=CompileCacheFormat())
            return super().build(engine, **asked)

    monkeypatch.setattr(compile_stage, "open_backend", lambda *_: Overtaken())
    assert use(build(shop, checkpoint)).entries_after == 1
    shared = newest(shop, tmp_path)
    assert shared
    assert CompileCacheFormat().count(tmp_path / "newest" / "model.cache") == 2


def test_a_record_of_before_the_modes_tells_hit_or_miss(
    shop: Workshop, checkpoint: list[FileRef]
) -> None:
    result = build(shop, checkpoint).result
    for cache, outcome in (("cold", "miss"), ("warm", "hit")):
        facts = {k: v for k, v in result.facts.items() if k != "timing_cache"} | {"cache": cache}
        told = timing_cache_use(result.model_copy(update={"facts": facts}))
        assert json.loads(told.model_dump_json()) == {"sha256": None, "outcome": outcome}
