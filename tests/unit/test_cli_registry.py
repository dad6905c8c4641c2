"""The commands that look after aliases and the bucket, as a person or a script types them."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from crowd import open_store
from typer.testing import CliRunner

from trtforge.cli import app
from trtforge.files import FileRef, describe_directory
from trtforge.store import Manifest, ManifestCore, ModelIdentity, Parents, Store, connect
from trtforge.store.client import make_client
from trtforge.store.layout import blob_key, manifest_key

MODEL = "org/model"
made_once = functools.cache(make_client)


@pytest.fixture
def store(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the environment names."""
    # Each command would take boto3 a good part of a second.
    monkeypatch.setattr(connect, "make_client", made_once)
    place = {
        "endpoint_url": s3.endpoint_url,
        "bucket": s3.bucket,
        "access_key_id": s3.access_key_id,
        "secret_access_key": s3.secret_access_key,
    }
    monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path / "home"))
    for name, value in place.items():
        monkeypatch.setenv(f"TRTFORGE_S3_{name.upper()}", value)
    return open_store(place, tmp_path / "home" / "cache")


@pytest.fixture
def publish(store: Store, tmp_path: Path) -> Callable[..., Manifest]:
    def publish_one(name: str, gpu: str | None = "NVIDIA H200") -> Manifest:
        directory = tmp_path / f"made-{name}"
        directory.mkdir()
        (directory / "rank0.engine").write_bytes(name.encode())
        core = ManifestCore(
            model=ModelIdentity(
                name=MODEL,
                source=f"hf://{MODEL}",
                revision="0" * 40,
                content_digest="1" * 64,
                licence=None,
            ),
            spec={"name": name},
            config={},
            toolchain={
                "backend": "trtllm",
                "backend_version": "1.2.1",
                "tensorrt_version": "10.14.1",
                "cuda_version": "13.0",
                "driver_version": "580.1",
                "gpu_name": gpu,
                "compute_capability": "9.0",
                "cpu": "x86-64-v4",
                "compiler": "",
                "os": "Linux",
                "arch": "x86_64",
                "image_digest": None,
            },
            files=tuple(describe_directory(directory)),
            parents=Parents(source="2" * 64, checkpoint="3" * 64),
            gates={},
        )
        return store.publish(Manifest.of(core), directory)

    return publish_one


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: str | Path) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def error(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.exit_code != 0
    return str(done.exception)


def test_promote_roll_back_and_look_at_the_history(publish: Callable[..., Manifest]) -> None:
    one, two = publish("one").engine_id, publish("two").engine_id
    assert told("promote", one[:8], "prod", "--by", "alice") == {
        "model": MODEL,
        "gpu": "NVIDIA H200",
        "backend": "trtllm",
        "alias": "prod",
        "engine_id": one,
        "previous": None,
        "moved": True,
    }
    assert "already" in run("promote", one[:8], "prod").stdout
    assert f"now points at {two[:12]}; before, at {one[:12]}" in run("promote", two, "prod").stdout
    assert told("rollback", MODEL, "prod")["engine_id"] == one
    assert told("rollback", MODEL, "prod")["engine_id"] == two
    assert told("rollback", MODEL, "prod", "--to", one[:8], "--by", "bob")["engine_id"] == one
    moves = told("history", MODEL, "prod")
    assert [move["engine_id"] for move in moves] == [one, two, one, two, one]
    assert [move["previous"] for move in moves] == [two, one, two, one, None]
    assert (moves[0]["by"], moves[-1]["by"]) == ("bob", "alice")
    assert "@" in moves[1]["by"]
    assert one[:12] in run("history", MODEL, "prod").stdout


def test_an_alias_of_several_gpus_is_told_apart(publish: Callable[..., Manifest]) -> None:
    one, two = publish("one"), publish("two", gpu="NVIDIA L4")
    for manifest in (one, two):
        told("promote", manifest.engine_id, "prod")
    assert "--gpu 'NVIDIA L4'" in error("history", MODEL, "prod")
    assert len(told("history", MODEL, "prod", "--gpu", "NVIDIA L4")) == 1
    wrong = error("rollback", MODEL, "prod", "--gpu", "NVIDIA L4", "--to", one.engine_id)
    assert "this engine is of org/model for NVIDIA H200" in wrong


def damage(store: Store, ref: FileRef) -> None:
    store.bucket.client.put_object(
        Bucket=store.bucket.name,
        Key=blob_key(ref.sha256),
        Body=bytes(ref.size_bytes),
        Metadata={"sha256": ref.sha256},
    )


def test_verify_names_damage_and_mends_it(
    store: Store, publish: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = publish("one")
    ref = manifest.core.files[0]
    assert "1 of 1 blobs are whole" in run("store", "verify").stdout
    damage(store, ref)
    for arguments in (["store", "verify"], ["store", "verify", manifest.engine_id[:8]]):
        done = run(*arguments)
        assert (done.exit_code, manifest.engine_id[:12] in done.stdout) == (1, True)
        assert "1 objects are damaged" in str(done.exception)
    found = json.loads(run("store", "verify", "--repair", "--json").stdout)
    assert found["damage"][0]["engines"] == [manifest.engine_id]
    assert (found["whole"], found["damage"][0]["repaired"]) == (False, False)
    assert told("store", "verify", "--from", tmp_path / "made-one")["whole"]
    assert told("store", "verify")["damage"] == []


def test_gc_says_what_it_would_free_and_frees_it_when_told(
    store: Store, publish: Callable[..., Manifest]
) -> None:
    kept, gone = publish("kept"), publish("gone")
    told("store", "pin", kept.engine_id, "--why", "the paper")
    assert [pin["why"] for pin in told("store", "pins")] == ["the paper"]
    assert told("store", "gc")["objects"] == []
    # The service's clock has whole seconds: nothing is older than 0 s at once.
    now = ["--keep-days", "0", "--grace-hours", "0", "--uploads-days", "0"]
    while len(told("store", "gc", *now)["objects"]) < 2:
        pass
    dry = told("store", "gc", *now)
    assert dry["deleted"] is False
    assert dry["kinds"] == {
        "engine": {"count": 1, "size_bytes": len(gone.to_bytes())},
        "blob": {"count": 1, "size_bytes": 4},
    }
    assert "add --delete" in run("store", "gc", *now).stdout
    assert store.get_manifest(gone.engine_id) == gone
    assert "Freed" in run("store", "gc", *now, "--delete").stdout
    assert [m.engine_id for m in store.list_manifests()] == [kept.engine_id]
    assert store.bucket.head(manifest_key(gone.engine_id)) is None
    assert told("store", "unpin", kept.engine_id)["removed"]


def test_an_engine_goes_to_another_site_in_a_file(
    store: Store, publish: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = publish("one")
    archive = tmp_path / "engine.tar"
    assert told("store", "export", manifest.engine_id, archive)["size_bytes"] > 0
    for key in list(store.bucket.keys("")):
        store.bucket.delete(key)
    assert told("store", "import", archive, "--alias", "prod")["engine_id"] == manifest.engine_id
    assert told("history", MODEL, "prod")[0]["engine_id"] == manifest.engine_id


def test_engines_are_mirrored_to_a_bucket_that_init_makes(
    store: Store, publish: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = publish("one"), publish("two")
    told("promote", two.engine_id, "prod")
    second = f"test-{hashlib.sha256(store.bucket.name.encode()).hexdigest()[:20]}"
    with monkeypatch.context() as there:
        there.setenv("TRTFORGE_S3_BUCKET", second)
        assert "no such bucket" in error("store", "init")
        assert told("store", "init", "--create")["created"] is True
        again = run("store", "init").stdout
        assert "was there" in again
        assert "honoured" in again
    by_alias = told("store", "mirror", "--to-bucket", second, "--alias", "prod")
    assert [done["engine_id"] for done in by_alias] == [two.engine_id]
    assert {e["engine_id"] for e in told("store", "mirror", "--to-bucket", second)} == {
        one.engine_id,
        two.engine_id,
    }
    assert "no model has such an alias" in error(
        "store", "mirror", "--to-bucket", second, "--alias", "nowhere"
    )
    with monkeypatch.context() as there:
        there.setenv("TRTFORGE_S3_BUCKET", second)
        assert told("history", MODEL, "prod")[0]["engine_id"] == two.engine_id
        assert told("store", "verify")["damage"] == []
