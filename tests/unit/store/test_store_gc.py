"""`gc` frees what nothing needs, and never what somebody is about to publish."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef, files_digest
from trtforge.store import AliasName, Manifest, StageResult, Store
from trtforge.store.announce import Sweep, announced
from trtforge.store.gc import (
    Garbage,
    Rules,
    SweepRunningError,
    delete_garbage,
    find_garbage,
)
from trtforge.store.layout import SWEEP, blob_key, manifest_key, stage_key
from trtforge.store.manifests import EngineUnknownError
from trtforge.store.pins import pin, pins, unpin
from trtforge.store.records import now

NOTHING_IS_YOUNG = Rules(keep_s=-1, grace_s=-1, uploads_s=-1)
ENGINES_ARE_YOUNG = Rules(keep_s=3600, grace_s=-1)
LATEST = AliasName("org/model", "NVIDIA H200", "trtllm", "latest")
Publish = Callable[[str], Manifest]
MakeFiles = Callable[..., tuple[Path, list[FileRef]]]
MakeManifest = Callable[..., Manifest]


def keys(garbage: list[Garbage]) -> set[str]:
    return {item.key for item in garbage}


def everything(store: Store) -> set[str]:
    return set(store.bucket.keys(""))


def of_engine(manifest: Manifest) -> set[str]:
    blobs = {blob_key(ref.sha256) for ref in manifest.core.files}
    return {manifest_key(manifest.engine_id), *blobs}


def record(stage: str, number: int, outputs: list[FileRef], **inputs: Any) -> StageResult:
    key = f"{number:064x}"
    return StageResult(stage=stage, key=key, inputs=inputs, outputs=tuple(outputs), seconds=1)


def test_what_is_young_stays(store: Store, publish: Publish) -> None:
    publish("one")
    store.put_bytes(b"an orphan", "orphan")
    assert find_garbage(store.bucket) == []
    assert find_garbage(store.bucket, Rules(keep_s=-1)) == []
    assert keys(find_garbage(store.bucket, ENGINES_ARE_YOUNG)) == {
        blob_key(store.put_bytes(b"an orphan", "orphan").sha256)
    }


def test_a_dry_run_tells_exactly_what_a_run_deletes(store: Store, publish: Publish) -> None:
    gone, kept = publish("gone"), publish("kept")
    store.set_alias(LATEST, kept.engine_id, by="run")
    before = everything(store)
    found = find_garbage(store.bucket, NOTHING_IS_YOUNG)
    assert everything(store) == before
    assert keys(found) == of_engine(gone)
    assert {item.kind for item in found} == {"engine", "blob"}
    assert sum(item.size_bytes for item in found if item.kind == "blob") == len(b"gone")
    assert delete_garbage(store.bucket, NOTHING_IS_YOUNG) == found
    assert everything(store) == before - of_engine(gone)
    assert delete_garbage(store.bucket, NOTHING_IS_YOUNG) == []


def test_an_alias_keeps_its_engine_and_the_one_to_roll_back_to(
    store: Store, publish: Publish
) -> None:
    engines = [publish(name) for name in ("first", "second", "third")]
    for engine in engines:
        store.set_alias(LATEST, engine.engine_id, by="run")
    assert keys(find_garbage(store.bucket, NOTHING_IS_YOUNG)) == of_engine(engines[0])


def test_a_pin_keeps_an_engine_until_it_is_taken_away(store: Store, publish: Publish) -> None:
    engine = publish("one")
    pin(store.bucket, store.manifests, engine.engine_id, by="alice", why="the paper")
    assert [(p.engine_id, p.by, p.why) for p in pins(store.bucket)] == [
        (engine.engine_id, "alice", "the paper")
    ]
    assert find_garbage(store.bucket, NOTHING_IS_YOUNG) == []
    assert unpin(store.bucket, engine.engine_id)
    assert not unpin(store.bucket, engine.engine_id)
    assert keys(find_garbage(store.bucket, NOTHING_IS_YOUNG)) == of_engine(engine)
    with pytest.raises(EngineUnknownError):
        pin(store.bucket, store.manifests, "0" * 64, by="alice")


def test_stage_records_stay_while_a_kept_engine_descends_from_them(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest
) -> None:
    directory, files = make_files(
        tokenizer=b"shared by all", weights=b"the weights", ranks=b"the checkpoint",
        engine=b"the engine", other=b"the weights of another model",
    )  # fmt: skip
    by_name = {ref.path: ref for ref in files}
    store.put_files(directory, files)
    source, checkpoint = [by_name["tokenizer"], by_name["weights"]], [by_name["ranks"]]
    template = make_manifest([by_name["engine"], by_name["tokenizer"]])
    parents = {"source": files_digest(source), "checkpoint": files_digest(checkpoint)}
    core = template.core.model_copy(
        update={"parents": template.core.parents.model_copy(update=parents)}
    )
    engine = store.publish_manifest(Manifest.of(core))
    store.set_alias(LATEST, engine.engine_id, by="run")
    descent = [
        record("pull", 1, source),
        record("convert", 2, checkpoint),
        record("compile", 3, [by_name["engine"]]),
        record("publish", 4, [], engine_id=engine.engine_id),
    ]
    strangers = [
        record("pull", 5, [by_name["tokenizer"], by_name["other"]]),
        record("publish", 6, [], engine_id="0" * 64),
    ]
    for result in (*descent, *strangers):
        store.put_stage(result)
    assert keys(delete_garbage(store.bucket, NOTHING_IS_YOUNG)) == {
        *(stage_key(result.stage, result.key) for result in strangers),
        blob_key(by_name["other"].sha256),
    }
    for result in descent:
        assert store.get_stage(result.stage, result.key) == result


def test_timing_caches_stay(store: Store, write_file: Callable[..., Any], tmp_path: Path) -> None:
    path, ref = write_file("model.cache", b"tactics")
    store.put_timing_cache("toolchain", path)
    assert blob_key(ref.sha256) not in keys(delete_garbage(store.bucket, NOTHING_IS_YOUNG))
    assert store.get_timing_cache("toolchain", tmp_path / "again") is not None


def test_what_a_record_of_a_newer_trtforge_names_stays(store: Store, publish: Publish) -> None:
    engine = publish("kept")
    ref = store.put_bytes(b"new kind of file", "x")
    text = f'{{"format":2,"engine":"{engine.engine_id}","files":["{ref.sha256}"]}}'.encode()
    store.bucket.put("aliases/m/g/b/latest.json", text)
    store.bucket.put(manifest_key("0" * 64), text)
    found = keys(find_garbage(store.bucket, Rules(keep_s=3600, grace_s=-1)))
    assert found.isdisjoint({*of_engine(engine), blob_key(ref.sha256), manifest_key("0" * 64)})


def test_other_peoples_objects_are_left_alone(store: Store) -> None:
    names = {"runs/1/log.txt", "leases/compile/x.json", "something/else", "notes.txt"}
    for name in names:
        store.bucket.put(name, b"{}")
    assert delete_garbage(store.bucket, NOTHING_IS_YOUNG) == []
    assert names <= everything(store)


def test_abandoned_uploads_are_aborted(store: Store, s3: Any) -> None:
    place = {"Bucket": s3.bucket, "Key": blob_key("1" * 64)}
    upload = s3.client.create_multipart_upload(**place)["UploadId"]
    s3.client.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    assert find_garbage(store.bucket) == []
    (found,) = find_garbage(store.bucket, NOTHING_IS_YOUNG)
    assert (found.kind, found.key, found.size_bytes) == ("unfinished upload", place["Key"], 1000)
    assert len(delete_garbage(store.bucket, NOTHING_IS_YOUNG)) == 1
    assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")


# While others publish


def put_sweep(store: Store, condemned: str, lasts_s: float) -> None:
    sweep = Sweep(id="0" * 32, condemned=(condemned,), lasts_s=lasts_s, at=now())
    store.bucket.put(SWEEP, sweep.to_bytes())


def test_a_publisher_waits_for_a_sweep_that_condemns_what_it_needs(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest
) -> None:
    directory, files = make_files(engine=b"engine")
    key = blob_key(files[0].sha256)
    store.put_file(directory / "engine", files[0])
    put_sweep(store, key, lasts_s=60)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(store.publish, make_manifest(files), directory)
        time.sleep(0.3)
        assert not publishing.done()
        store.bucket.delete(key)
        store.bucket.delete(SWEEP)
        manifest = publishing.result()
    assert store.blobs.missing(manifest.core.files) == []


def test_a_sweep_of_other_things_or_of_a_dead_gc_stops_nobody(
    store: Store, publish: Publish
) -> None:
    put_sweep(store, blob_key("1" * 64), lasts_s=60)
    publish("one")
    store.put_bytes(b"orphan", "x")
    with pytest.raises(SweepRunningError, match=r"at the latest in \d+ s"):
        delete_garbage(store.bucket, NOTHING_IS_YOUNG)
    two = publish("two")
    put_sweep(store, manifest_key(two.engine_id), lasts_s=0.001)
    time.sleep(1.1)  # the service's clock has whole seconds
    assert publish("two") == two
    delete_garbage(store.bucket, NOTHING_IS_YOUNG)
    assert SWEEP not in everything(store)


def test_what_is_announced_is_spared(store: Store, publish: Publish) -> None:
    engine, ref = publish("one"), store.put_bytes(b"needed soon", "x")
    with announced(store.bucket, engine_ids=[engine.engine_id], files=[ref]):
        assert find_garbage(store.bucket, NOTHING_IS_YOUNG) == []
    assert keys(find_garbage(store.bucket, NOTHING_IS_YOUNG)) == {
        *of_engine(engine),
        blob_key(ref.sha256),
    }


def test_a_gc_that_fails_before_it_deletes_binds_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_bytes(b"orphan", "x")

    def fail(*_: Any) -> None:
        raise RuntimeError

    put = store.bucket.put_if_absent

    def put_then_fail(key: str, data: bytes) -> bool:
        monkeypatch.setattr("trtforge.store.gc._Gc._announced", fail)
        return put(key, data)

    monkeypatch.setattr(store.bucket, "put_if_absent", put_then_fail)
    with pytest.raises(RuntimeError):
        delete_garbage(store.bucket, NOTHING_IS_YOUNG)
    assert SWEEP not in everything(store)


def race(rounds: int, store: Store, make_files: MakeFiles, make_manifest: MakeManifest) -> None:
    """Publish engines of blobs that are there and needed by nobody, while they are swept."""
    done, swept_something = threading.Event(), threading.Event()

    def sweep_on() -> None:
        while not done.is_set():
            if delete_garbage(store.bucket, ENGINES_ARE_YOUNG):
                swept_something.set()

    published = []
    with ThreadPoolExecutor(3) as pool:
        sweeping = pool.submit(sweep_on)
        try:
            for number in range(rounds):
                directory, files = make_files(
                    a=b"a%d" % number, b=b"b%d" % number, c=b"c%d" % number
                )
                store.put_files(directory, files)
                if number == 0:
                    assert swept_something.wait(60)
                time.sleep(random.uniform(0, 0.05))
                published.append(store.publish(make_manifest(files, f"org/{number}"), directory))
                for earlier in published[-3:]:
                    assert store.blobs.missing(earlier.core.files) == []
        finally:
            done.set()
        sweeping.result()
    delete_garbage(store.bucket, ENGINES_ARE_YOUNG)
    for manifest in published:
        assert store.blobs.missing(store.get_manifest(manifest.engine_id).core.files) == []


def test_a_published_engine_never_lacks_what_was_swept_meanwhile(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest
) -> None:
    race(15, store, make_files, make_manifest)


@pytest.mark.slow
def test_a_published_engine_never_lacks_what_was_swept_meanwhile_many_times(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest
) -> None:
    race(150, store, make_files, make_manifest)


def test_an_alias_never_points_at_an_engine_that_is_swept_meanwhile(
    store: Store, publish: Publish
) -> None:
    outcomes = set()
    for number in range(8):
        engine = publish(f"engine-{number}")
        name = AliasName("org/model", "gpu", "aoti", f"alias-{number}")
        with ThreadPoolExecutor(1) as pool:
            sweeping = pool.submit(delete_garbage, store.bucket, NOTHING_IS_YOUNG)
            time.sleep(random.uniform(0, 0.1))
            try:
                store.set_alias(name, engine.engine_id, by="run")
                outcomes.add("kept")
            except EngineUnknownError:
                outcomes.add("gone")
            sweeping.result()
    for _, pointer in store.list_aliases():
        assert store.blobs.missing(store.get_manifest(pointer.engine_id).core.files) == []
    assert outcomes
