"""Every byte is read again; what is damaged is named with who needs it, and mended from copies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef
from trtforge.store import Manifest, StageResult, Store
from trtforge.store.layout import blob_key, manifest_key, stage_key
from trtforge.store.verify import (
    Damage,
    cached_copies,
    copies_below,
    either,
    verify_engine,
    verify_store,
)

MIB = 1 << 20
MakeFiles = Callable[..., tuple[Path, list[FileRef]]]
MakeManifest = Callable[..., Manifest]


@pytest.fixture
def damage(s3: Any) -> Callable[[FileRef], None]:
    """Flips one bit in a blob; its size and metadata stay right."""

    def flip(ref: FileRef) -> None:
        place = {"Bucket": s3.bucket, "Key": blob_key(ref.sha256)}
        stored = s3.client.get_object(**place)
        data = bytearray(stored["Body"].read())
        data[len(data) // 2] ^= 1
        s3.client.put_object(**place, Body=bytes(data), Metadata=stored["Metadata"])

    return flip


@pytest.fixture
def engine(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest
) -> tuple[Manifest, Path]:
    """A published engine with a file of several parts, and the directory it was made in."""
    directory, files = make_files(engine=b"\x07" * (11 * MIB) + b"end", config=b"{}", empty=b"")
    return store.publish(make_manifest(files), directory), directory


def file_of(manifest: Manifest, path: str) -> FileRef:
    return next(ref for ref in manifest.core.files if ref.path == path)


def test_a_whole_store_is_found_whole(store: Store, engine: tuple[Manifest, Path]) -> None:
    told: list[int] = []
    found = verify_store(store, on_progress=lambda progress: told.append(progress.done))
    assert (found.blobs, found.size_bytes, found.damage) == (3, 11 * MIB + 5, ())
    assert told[-1] == found.size_bytes
    assert verify_engine(store, engine[0]).damage == ()


def test_a_flipped_bit_is_named_with_the_engines_that_need_it(
    store: Store,
    engine: tuple[Manifest, Path],
    damage: Callable[[FileRef], None],
    make_manifest: MakeManifest,
) -> None:
    manifest = engine[0]
    other = store.publish_manifest(make_manifest(list(manifest.core.files), "org/other"))
    ref = file_of(manifest, "engine")
    key = "1" * 64
    store.put_stage(StageResult(stage="compile", key=key, inputs={}, outputs=(ref,), seconds=1))
    damage(ref)
    (found,) = verify_store(store).damage
    engines = sorted([manifest.engine_id, other.engine_id])
    assert (found.key, found.fault, found.size_bytes) == (
        blob_key(ref.sha256),
        "damaged",
        ref.size_bytes,
    )
    assert sorted(found.engines) == engines
    assert found.others == (stage_key("compile", key),)
    assert verify_engine(store, manifest).remaining == (
        Damage(found.key, "damaged", ref.size_bytes, (manifest.engine_id,)),
    )


def test_missing_cut_off_and_nameless_blobs_are_named(
    store: Store, engine: tuple[Manifest, Path], s3: Any
) -> None:
    refs = {ref.path: ref for ref in engine[0].core.files}
    store.bucket.delete(blob_key(refs["engine"].sha256))
    s3.client.put_object(Bucket=s3.bucket, Key=blob_key(refs["config"].sha256), Body=b"{")
    # Right bytes without our metadata: publishers would not take it for present.
    s3.client.put_object(Bucket=s3.bucket, Key=blob_key(refs["empty"].sha256), Body=b"")
    faults = {damage.key: damage.fault for damage in verify_engine(store, engine[0]).damage}
    assert faults == {
        blob_key(refs["engine"].sha256): "missing",
        blob_key(refs["config"].sha256): "damaged",
        blob_key(refs["empty"].sha256): "damaged",
    }


def test_a_damaged_manifest_is_named(store: Store, engine: tuple[Manifest, Path]) -> None:
    engine_id = engine[0].engine_id
    text = store.bucket.get(manifest_key(engine_id))
    assert text
    store.bucket.put(manifest_key(engine_id), text.data.replace(b"bfloat16", b"float32"))
    (found,) = verify_store(store).remaining
    assert (found.key, found.fault) == (manifest_key(engine_id), "unreadable record")


def test_damage_is_mended_from_the_cache(
    store: Store, engine: tuple[Manifest, Path], damage: Callable[[FileRef], None]
) -> None:
    manifest, directory = engine
    ref = file_of(manifest, "engine")
    store.add_to_cache(directory / "engine", ref)
    damage(ref)
    found = verify_store(store, cached_copies(store))
    assert [d.repaired for d in found.damage] == [True]
    assert found.remaining == ()
    assert verify_store(store).damage == ()


def test_damage_is_mended_from_any_directory_by_content(
    store: Store,
    engine: tuple[Manifest, Path],
    damage: Callable[[FileRef], None],
    tmp_path: Path,
) -> None:
    manifest, directory = engine
    ref = file_of(manifest, "engine")
    damage(ref)
    backup = tmp_path / "backup" / "deep"
    backup.mkdir(parents=True)
    (backup / "decoy").write_bytes(b"\x08" * ref.size_bytes)
    assert verify_store(store, copies_below(tmp_path / "backup")).remaining
    (directory / "engine").rename(backup / "renamed.bin")
    copies = either(cached_copies(store), copies_below(tmp_path / "backup"))
    assert verify_store(store, copies).remaining == ()
    assert verify_store(store).damage == ()


def test_a_damaged_copy_mends_nothing(
    store: Store, engine: tuple[Manifest, Path], damage: Callable[[FileRef], None]
) -> None:
    manifest, directory = engine
    ref = file_of(manifest, "config")
    store.add_to_cache(directory / "config", ref)
    entry = store.cache.path(ref.sha256)
    entry.chmod(0o644)
    entry.write_bytes(b"[]")
    damage(ref)
    assert len(verify_engine(store, manifest, cached_copies(store)).remaining) == 1


def test_a_connection_that_breaks_off_is_taken_up_again(
    store: Store, engine: tuple[Manifest, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import IncompleteReadError
    from botocore.response import StreamingBody

    whole, ranges = StreamingBody.iter_chunks, []

    def breaking(self: Any, size: int) -> Any:
        for number, chunk in enumerate(whole(self, size)):
            if number == 3:
                ranges.append(number)
                raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
            yield chunk

    monkeypatch.setattr(StreamingBody, "iter_chunks", breaking)
    assert verify_engine(store, engine[0]).damage == ()
    assert len(ranges) == 3
