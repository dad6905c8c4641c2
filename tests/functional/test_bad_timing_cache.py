"""Somebody planted rubbish as the timing cache of this toolchain: the build is cold, and done."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from forge import Build, Forge, write_spec

from trtforge.engines.aoti.compile_cache import CompileCacheFormat
from trtforge.engines.base import Toolchain
from trtforge.store.layout import timing_key


@pytest.fixture
def toolchain_key(forge: Forge, built: Build) -> Iterator[str]:
    """Of the session's builds; their timing cache is put back in the end."""
    manifest = forge.store.get_manifest(built.result["engine_id"])
    key = Toolchain.from_json(manifest.core.toolchain).key()
    head = {"Bucket": forge.stack.s3_bucket, "Key": timing_key(key)}
    before = forge.client.get_object(**head)["Body"].read()
    yield key
    forge.client.put_object(**head, Body=before)


@pytest.mark.slow
def test_rubbish_with_a_right_digest_costs_a_cold_build_and_is_replaced(
    forge: Forge, built: Build, toolchain_key: str, tmp_path: Path
) -> None:
    rubbish = tmp_path / "model.cache"
    rubbish.write_bytes(b"PK\x03\x04 and then nothing sensible")
    planted = forge.store.put_timing_cache(toolchain_key, rubbish)
    # Of another shape than the first engine's, so that the store has no such engine.
    spec = write_spec(tmp_path / "spec.yaml", built.model, engine={"max_num_tokens": 95})
    result = forge.json("build", spec)
    manifest = forge.store.get_manifest(result["engine_id"])
    use = manifest.timing_cache
    assert use is not None
    assert (use.outcome, use.sha256, use.entries_before) == ("miss", planted.sha256, None)
    newest = tmp_path / "newest.cache"
    assert forge.store.get_timing_cache(toolchain_key, newest)
    assert CompileCacheFormat().count(newest) == use.entries_after
    assert use.entries_after
