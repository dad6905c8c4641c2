"""Every name has one key, and the key gives the name back."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trtforge.store.layout import (
    AliasName,
    InvalidNameError,
    alias_key,
    alias_name_of,
    blob_key,
    engine_id_of,
    manifest_key,
    run_key,
    slug,
    stage_key,
    timing_key,
    unslug,
)

DIGEST = "ab" + "0" * 62
# Rich in the characters that have a meaning in slugs.
names = st.text(st.sampled_from("aZ0/- _~.é\0") | st.characters(codec="utf-8"), min_size=1)


@given(names)
def test_a_slug_is_one_safe_path_component_and_gives_the_name_back(name: str) -> None:
    assume(len(name.encode()) < 80)
    written = slug(name)
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", written)
    assert written.strip(".")
    assert unslug(written) == name


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama--Llama-3.1-8B"),
        ("NVIDIA H200", "NVIDIA_H200"),
        ("a--b", "a~2D~2Db"),
        ("snake_case", "snake~5Fcase"),
        ("..", "~2E~2E"),
    ],
)
def test_slugs_stay_readable(name: str, written: str) -> None:
    assert slug(name) == written


@pytest.mark.parametrize("name", ["", "x" * 300, "\ud800"])
def test_names_that_cannot_be_keys_are_refused(name: str) -> None:
    with pytest.raises(InvalidNameError, match="cannot be a name in the store"):
        slug(name)


@given(st.builds(AliasName, *[names.filter(lambda n: len(n.encode()) < 70)] * 4))
def test_an_alias_key_gives_its_name_back(name: AliasName) -> None:
    assert alias_name_of(alias_key(name)) == name


def test_keys_are_those_of_layout_version_1() -> None:
    assert blob_key(DIGEST) == f"blobs/sha256/ab/{DIGEST}"
    assert stage_key("compile", DIGEST) == f"stages/compile/{DIGEST}.json"
    assert manifest_key(DIGEST) == f"manifests/{DIGEST}.json"
    assert engine_id_of(manifest_key(DIGEST)) == DIGEST
    assert timing_key("trtllm-1.2.1") == "timing/trtllm-1.2.1/head.json"
    assert run_key("run-7", "bench/raw.jsonl") == "runs/run-7/bench/raw.jsonl"
    name = AliasName("Qwen/Qwen2.5-0.5B", "NVIDIA H200", "trtllm", "latest")
    assert alias_key(name) == "aliases/Qwen--Qwen2.5-0.5B/NVIDIA_H200/trtllm/latest.json"


@pytest.mark.parametrize(
    "digest", ["", "AB" + "0" * 62, "0" * 63, "../" + "0" * 61, "0" * 64 + "\n"]
)
def test_what_is_no_digest_is_no_blob(digest: str) -> None:
    with pytest.raises(InvalidNameError, match="64 hex digits"):
        blob_key(digest)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../../b", "..", "a\\b"])
def test_a_run_file_stays_below_its_run(name: str) -> None:
    with pytest.raises(InvalidNameError):
        run_key("run-7", name)


@pytest.mark.parametrize("stage", ["", "Compile", "a/b", "../x"])
def test_stage_names_are_plain(stage: str) -> None:
    with pytest.raises(InvalidNameError):
        stage_key(stage, DIGEST)
