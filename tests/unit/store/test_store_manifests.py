"""A manifest is published once, after its blobs, and says exactly what its id promises."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef, describe_directory
from trtforge.store import Manifest, Store
from trtforge.store.layout import manifest_key
from trtforge.store.manifests import (
    BlobsNotUploadedError,
    EngineAmbiguousError,
    EngineIdError,
    EngineUnknownError,
    ManifestConflictError,
    ManifestIdError,
)
from trtforge.store.records import RecordInvalidError

MakeFiles = Callable[..., tuple[Path, list[FileRef]]]
MakeManifest = Callable[..., Manifest]
Publish = Callable[[str], Manifest]


def overwrite(s3: Any, engine_id: str, data: bytes) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key=manifest_key(engine_id), Body=data)


def test_a_published_engine_is_found_and_fetched_on_any_machine(
    open_store: Callable[..., Store], publish: Publish, tmp_path: Path
) -> None:
    manifest = publish("org/model")
    other = open_store("another")
    found = other.get_manifest(manifest.engine_id)
    assert found == manifest
    other.materialise(found.core.files, tmp_path / "engine", use_cache=False)
    assert describe_directory(tmp_path / "engine") == list(found.core.files)


def test_a_manifest_without_its_blobs_is_not_published(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest
) -> None:
    directory, files = make_files(engine=b"engine", config=b"{}")
    store.put_file(directory / "config", next(f for f in files if f.path == "config"))
    with pytest.raises(BlobsNotUploadedError, match=r"lacks 1 of the 2 files .* such as 'engine'"):
        store.publish_manifest(make_manifest(files))
    assert list(store.list_manifests()) == []


def test_publishing_again_returns_what_is_in_the_store(store: Store, publish: Publish) -> None:
    first = publish("org/model")
    later = Manifest.of(first.core, timings={"compile": 99.0})
    assert later != first
    assert later.engine_id == first.engine_id
    assert store.publish_manifest(later) == first
    assert store.get_manifest(first.engine_id) == first


def test_two_publishers_of_one_engine_agree(store: Store, publish: Publish) -> None:
    core = publish("org/model").core
    other = core.model_copy(update={"spec": {"dtype": "float16"}})
    with ThreadPoolExecutor(8) as pool:
        kept = list(
            pool.map(
                lambda i: store.publish_manifest(Manifest.of(other, timings={"x": i})), range(8)
            )
        )
    assert all(manifest == kept[0] for manifest in kept)


def test_the_id_depends_on_the_core_only_and_not_on_the_order_of_files(
    make_manifest: MakeManifest,
) -> None:
    files = [FileRef("b", 1, "0" * 64), FileRef("a", 1, "1" * 64)]
    one, two = make_manifest(files), make_manifest(files[::-1])
    assert one.engine_id == two.engine_id
    assert one.created_at != two.created_at
    assert make_manifest(files, "org/other").engine_id != one.engine_id
    with pytest.raises(ValueError, match="two files have the same path"):
        make_manifest([files[0], files[0]])


def test_a_manifest_cannot_be_made_with_an_id_that_is_not_its_own(
    make_manifest: MakeManifest,
) -> None:
    manifest = make_manifest([FileRef("a", 1, "1" * 64)])
    with pytest.raises(ManifestIdError):
        Manifest(engine_id="0" * 64, core=manifest.core)


def test_a_manifest_that_was_tampered_with_is_refused(
    store: Store, publish: Publish, s3: Any
) -> None:
    manifest = publish("org/model")
    overwrite(s3, manifest.engine_id, manifest.to_bytes().replace(b"bfloat16", b"float16"))
    with pytest.raises(ManifestIdError, match="changed after it was made"):
        store.get_manifest(manifest.engine_id)
    with pytest.raises(ManifestConflictError, match="is not the manifest of this engine"):
        store.publish_manifest(manifest)
    assert list(store.list_manifests()) == []


def test_a_manifest_under_another_ones_name_is_refused(
    store: Store, publish: Publish, s3: Any
) -> None:
    one, two = publish("org/one"), publish("org/two")
    overwrite(s3, one.engine_id, two.to_bytes())
    with pytest.raises(RecordInvalidError, match="describes another engine"):
        store.get_manifest(one.engine_id)
    with pytest.raises(ManifestConflictError):
        store.publish_manifest(one)


def test_the_newest_engine_is_listed_first(store: Store, publish: Publish) -> None:
    published = [publish(f"org/model-{i}") for i in range(4)]
    assert list(store.list_manifests()) == published[::-1]


def test_the_beginning_of_an_id_is_enough(store: Store, publish: Publish) -> None:
    manifest = publish("org/model")
    assert store.get_manifest(manifest.engine_id[:6]) == manifest
    assert store.get_manifest(manifest.engine_id[:9].upper()) == manifest


@pytest.mark.parametrize("text", ["", "abcde", "latest", "0" * 65, "../../x"])
def test_what_cannot_begin_an_id_is_refused(store: Store, text: str) -> None:
    with pytest.raises(EngineIdError, match="first 6"):
        store.get_manifest(text)


def test_an_ambiguous_beginning_lists_the_candidates(store: Store, s3: Any) -> None:
    ids = ["abcdef" + "0" * 58, "abcdef" + "1" * 58]
    for engine_id in ids:
        overwrite(s3, engine_id, b"{}")
    with pytest.raises(EngineAmbiguousError, match="2 engines") as caught:
        store.get_manifest("abcdef")
    assert all(engine_id in str(caught.value) for engine_id in ids)


@pytest.mark.parametrize("wanted", ["000000", "0" * 64])
def test_an_unknown_engine_is_answered_with_those_that_exist(
    store: Store, publish: Publish, wanted: str
) -> None:
    with pytest.raises(EngineUnknownError, match="none is published yet"):
        store.get_manifest(wanted)
    manifest = publish("org/model")
    with pytest.raises(EngineUnknownError, match=manifest.engine_id[:12]) as caught:
        store.get_manifest(wanted)
    assert "trtforge list" in str(caught.value)


def test_a_manifest_stays_itself_through_json_pickle_and_copies(
    store: Store, publish: Publish
) -> None:
    manifest = publish("org/model")
    for same in (
        Manifest.model_validate(manifest.model_dump(mode="json")),
        Manifest.model_validate_json(manifest.model_dump_json()),
        pickle.loads(pickle.dumps(manifest)),
        manifest.model_copy(),
    ):
        assert same == manifest
        assert same.to_bytes() == manifest.to_bytes()
    assert store.publish_manifest(same) == manifest


def test_measuring_again_gives_new_evidence_and_the_same_engine(
    make_manifest: MakeManifest,
) -> None:
    core = make_manifest([FileRef("a", 1, "1" * 64)]).core
    one = Manifest.of(core, evidence=(FileRef("report.json", 1, "2" * 64),))
    two = Manifest.of(core, evidence=(FileRef("report.json", 1, "3" * 64),))
    assert one.engine_id == two.engine_id
    assert one.evidence != two.evidence
    assert b"evidence" not in Manifest.of(core).to_bytes()


@pytest.mark.parametrize(
    ("checkpoint", "ranks"), [({"tp": 4, "pp": 2}, 8), ({"tp": 2}, 2), ({}, 1), (None, 1)]
)
def test_an_engine_has_as_many_ranks_as_its_spec_asked_for(
    make_manifest: MakeManifest, checkpoint: Any, ranks: int
) -> None:
    core = make_manifest([FileRef("a", 1, "1" * 64)]).core
    spec = {} if checkpoint is None else {"checkpoint": checkpoint}
    assert core.model_copy(update={"spec": spec}).ranks == ranks
