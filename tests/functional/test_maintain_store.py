"""The flow maintain-store on a real Prefect server and a bucket of its own."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from prebuilt import prebuild, tiny_weights, toolchain_of
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from trtforge.spec import parse_spec
from trtforge.stages.stage import Workshop
from trtforge.stages.workshop import open_workshop
from trtforge.store import Manifest
from trtforge.store.layout import blob_key


@pytest.fixture
def shop(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """The store that the flow looks after."""
    monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRTFORGE_S3_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("TRTFORGE_S3_BUCKET", s3.bucket)
    monkeypatch.setenv("TRTFORGE_S3_ACCESS_KEY_ID", s3.access_key_id)
    monkeypatch.setenv("TRTFORGE_S3_SECRET_ACCESS_KEY", s3.secret_access_key)
    shop = open_workshop()
    shop.work_root.mkdir(parents=True)
    return shop


@pytest.fixture
def engine(shop: Workshop, tmp_path: Path) -> Manifest:
    """An engine in use."""
    source = tiny_weights(tmp_path / "weights", "weights")
    spec = parse_spec({"model": {"source": str(source)}})
    manifest = prebuild(shop, spec, toolchain_of())
    assert manifest is not None
    return manifest


def maintain(**parameters: Any) -> Any:
    from flows.maintain_store import maintain_store

    return maintain_store(**parameters, return_state=True)


def table(prefect_client: SyncPrefectClient) -> dict[str, str]:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["store-health"]))
    newest = max(
        prefect_client.read_artifacts(artifact_filter=wanted), key=lambda a: str(a.created)
    )
    return {row["What"]: row["Figure"] for row in json.loads(str(newest.data))}


def test_a_round_through_a_store_that_is_whole(
    prefect_client: SyncPrefectClient, shop: Workshop, engine: Manifest
) -> None:
    state = maintain(read_all_within_days=1)
    assert state.is_completed()
    shown = table(prefect_client)
    assert shown["State"] == "whole"
    assert shown["Engines"] == "1"
    assert shown["Aliases"] == "1"
    blobs = len(list(shop.store.bucket.keys("blobs/")))
    assert shown["Read now"].endswith(f" in {blobs} blobs")
    assert shop.store.get_manifest(engine.engine_id) == engine


@pytest.mark.usefixtures("engine")
def test_a_dry_run_deletes_nothing_and_tells_what_would_go(
    prefect_client: SyncPrefectClient, shop: Workshop, s3: Any
) -> None:
    s3.client.create_multipart_upload(Bucket=s3.bucket, Key="blobs/sha256/ab/half")
    # The server tells in whole seconds when that was.
    time.sleep(1.1)
    assert maintain(dry_run=True, uploads_days=0).is_completed()
    assert table(prefect_client)["Reclaimable"] == "0 B in 1 objects"
    assert table(prefect_client)["Unfinished uploads"] == "1, the oldest begun 0 h ago"
    assert s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")

    assert maintain(uploads_days=0).is_completed()
    assert table(prefect_client)["Freed now"] == "0 B in 1 objects"
    assert table(prefect_client)["Unfinished uploads"] == "0"
    assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")
    assert len(list(shop.store.list_manifests())) == 1


def test_damage_fails_the_run_and_names_the_engine(
    prefect_client: SyncPrefectClient, shop: Workshop, engine: Manifest
) -> None:
    lost = next(ref for ref in engine.core.files if ref.path == "rank0.engine")
    key = blob_key(lost.sha256)
    shop.store.bucket.delete(key)
    state = maintain(read_all_within_days=1)
    assert state.is_failed()
    assert key in state.message
    assert f"engine {engine.engine_id[:12]}" in state.message
    assert table(prefect_client)["State"] == "1 objects damaged"
    assert key in table(prefect_client)["Damaged"]
