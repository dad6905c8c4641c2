"""A blob is what its name says, in the bucket, in the cache and where it is wanted."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef, describe_directory
from trtforge.progress import Progress
from trtforge.store import PutSummary, Store
from trtforge.store.blobs import DestinationTakenError
from trtforge.store.layout import blob_key
from trtforge.store.partial import DiskFullError
from trtforge.store.transfer import BlobCorruptError, BlobMissingError, FileChangedError

MIB = 1 << 20
WriteFile = Callable[[str, bytes], tuple[Path, FileRef]]
MakeFiles = Callable[..., tuple[Path, list[FileRef]]]


def cached_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size_bytes", [0, 1, 5 * MIB - 1, 5 * MIB, 12 * MIB + 7])
def test_a_file_comes_back_as_it_was_from_any_machine(
    open_store: Callable[..., Store], write_file: WriteFile, tmp_path: Path, size_bytes: int
) -> None:
    path, ref = write_file("engine", os.urandom(size_bytes))
    seen: list[Progress] = []
    assert open_store().put_file(path, ref, seen.append)
    assert size_bytes == 0 or (seen[-1].done, seen[-1].total) == (size_bytes, size_bytes)
    other = open_store("another")
    assert not other.put_file(path, ref)
    seen.clear()
    other.get_file(ref.sha256, ref.size_bytes, tmp_path / "deep" / "copy", seen.append)
    assert (tmp_path / "deep" / "copy").read_bytes() == path.read_bytes()
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert size_bytes == 0 or seen[-1].done == size_bytes


def test_bytes_become_a_blob(store: Store, tmp_path: Path) -> None:
    ref = store.put_bytes(b"report", "report.md")
    assert ref == store.put_bytes(b"report", "report.md")
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "report.md")
    assert (tmp_path / "report.md").read_bytes() == b"report"


@pytest.mark.parametrize("size_bytes", [MIB, 12 * MIB])
@pytest.mark.parametrize("change", ["same size", "shorter", "longer"])
def test_a_file_that_changes_while_it_is_sent_is_never_visible(
    store: Store,
    s3: Any,
    hooks: Callable[..., None],
    write_file: WriteFile,
    size_bytes: int,
    change: str,
) -> None:
    path, ref = write_file("engine", os.urandom(size_bytes))
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    key = blob_key(ref.sha256)

    def change_it(**_: Any) -> None:
        new = {"same size": changed, "shorter": changed[:-1], "longer": changed + b"x"}
        path.write_bytes(new[change])

    # The size is checked first, then the bucket is asked for the blob: the file changes here.
    hooks("before-parameter-build.s3.HeadObject", change_it)
    with pytest.raises(FileChangedError, match="changed after it was described"):
        store.put_file(path, ref)
    listed = s3.client.list_objects_v2(Bucket=s3.bucket).get("Contents", [])
    assert key not in [item["Key"] for item in listed]
    assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")


def test_a_file_that_is_not_as_described_is_refused(
    store: Store, write_file: WriteFile, tmp_path: Path
) -> None:
    path, ref = write_file("engine", b"as described")
    path.write_bytes(b"longer than described")
    with pytest.raises(FileChangedError, match="engine"):
        store.put_file(path, ref)
    with pytest.raises(FileChangedError, match="gone"):
        store.put_file(tmp_path / "gone", ref)
    path.write_bytes(b"AS DESCRIBED")
    with pytest.raises(FileChangedError):
        store.add_to_cache(path, ref)


KILLED = """
import os, sys
from pathlib import Path
from pydantic import SecretStr
from trtforge.files import FileRef
from trtforge.store import Store
from trtforge.store.client import make_client

def die_half_way(progress):
    if progress.done > 6 << 20:
        os._exit(9)

client = make_client(endpoint_url=sys.argv[1], access_key_id=os.environ["KEY_ID"],
                     secret_access_key=SecretStr(os.environ["SECRET"]))
store = Store(client, sys.argv[2], Path(sys.argv[3]), part_bytes=5 << 20)
path, ref = Path(sys.argv[4]), FileRef("engine", int(sys.argv[5]), sys.argv[6])
if sys.argv[7] == "upload":
    store.put_file(path, ref, die_half_way)
else:
    store.materialise([ref], path, on_progress=die_half_way)
"""


def run_until_killed(s3: Any, cache_dir: Path, path: Path, ref: FileRef, what: str) -> None:
    arguments = [s3.endpoint_url, s3.bucket, cache_dir, path, ref.size_bytes, ref.sha256, what]
    died = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env=os.environ | {"KEY_ID": s3.access_key_id, "SECRET": s3.secret_access_key},
        check=False,
    )
    assert died.returncode == 9


def test_an_upload_that_was_killed_leaves_nothing_visible_and_can_be_repeated(
    store: Store, s3: Any, write_file: WriteFile, tmp_path: Path
) -> None:
    path, ref = write_file("engine", os.urandom(16 * MIB))
    run_until_killed(s3, tmp_path / "cache-killed", path, ref, "upload")
    assert s3.client.list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 0
    assert store.put_file(path, ref)
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_a_download_that_was_killed_leaves_nothing_in_place_and_is_swept_up(
    open_store: Callable[..., Store], s3: Any, write_file: WriteFile, tmp_path: Path
) -> None:
    path, ref = write_file("engine", os.urandom(16 * MIB))
    open_store().put_file(path, ref)
    cache_dir, dest = tmp_path / "shared-cache", tmp_path / "out" / "engine"
    run_until_killed(s3, cache_dir, dest, ref, "download")
    assert not dest.exists()
    assert cached_files(cache_dir)  # the partial file of the dead process
    open_store(cache_dir=cache_dir).materialise([ref], dest)
    assert (dest / "engine").read_bytes() == path.read_bytes()
    assert cached_files(cache_dir) == [cache_dir / blob_key(ref.sha256)]
    assert list(dest.parent.iterdir()) == [dest]


def test_garbage_under_the_name_of_a_blob_is_found_out(
    store: Store, s3: Any, write_file: WriteFile, tmp_path: Path
) -> None:
    _, ref = write_file("engine", b"engine")
    s3.client.put_object(
        Bucket=s3.bucket,
        Key=blob_key(ref.sha256),
        Body=b"EnGiNe",
        Metadata={"sha256": ref.sha256},
    )
    with pytest.raises(BlobCorruptError, match="do not match its name"):
        store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    for use_cache in (True, False):
        with pytest.raises(BlobCorruptError):
            store.materialise([ref], tmp_path / "dir", use_cache=use_cache)
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "dir").exists()
    assert cached_files(tmp_path / "cache-here") == []


@pytest.mark.parametrize("garbage", [b"", b"engine and more", b"EnGiNe"])
def test_an_upload_replaces_garbage_without_the_right_size_and_metadata(
    store: Store, s3: Any, write_file: WriteFile, tmp_path: Path, garbage: bytes
) -> None:
    path, ref = write_file("engine", b"engine")
    s3.client.put_object(Bucket=s3.bucket, Key=blob_key(ref.sha256), Body=garbage)
    with pytest.raises(BlobCorruptError):
        store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert store.put_file(path, ref)
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"engine"


def test_a_download_that_came_out_wrong_is_done_once_more(
    store: Store, s3: Any, write_file: WriteFile, tmp_path: Path
) -> None:
    _, ref = write_file("engine", b"engine")
    blob = {"Bucket": s3.bucket, "Key": blob_key(ref.sha256)}
    s3.client.put_object(**blob, Body=b"EnGiNe")
    seen: list[int] = []

    def heal(progress: Progress) -> None:
        seen.append(progress.done)
        s3.client.put_object(**blob, Body=b"engine")

    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back", heal)
    assert (tmp_path / "back").read_bytes() == b"engine"
    assert seen == [6, 0, 6]


def test_a_blob_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BlobMissingError, match="has no blob"):
        store.get_file("0" * 64, 3, tmp_path / "back")


def test_the_cache_spares_downloads_and_is_read_only(
    store: Store, s3: Any, write_file: WriteFile, tmp_path: Path
) -> None:
    path, ref = write_file("engine", b"engine")
    store.put_file(path, ref)
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "one")
    s3.client.delete_object(Bucket=s3.bucket, Key=blob_key(ref.sha256))
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "two")
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "two")
    assert (tmp_path / "two").stat().st_ino == (tmp_path / "one").stat().st_ino
    assert (tmp_path / "two").stat().st_mode & 0o777 == 0o444
    assert not list(tmp_path.glob(".*"))


def test_a_produced_file_in_the_cache_need_not_be_downloaded(
    store: Store, write_file: WriteFile, tmp_path: Path
) -> None:
    path, ref = write_file("engine", b"engine")
    store.add_to_cache(path, ref)
    store.add_to_cache(path, ref)
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"engine"


@pytest.mark.parametrize(("damage", "verify"), [(b"eng", False), (b"EnGiNe", True)])
def test_a_damaged_cache_entry_is_replaced(
    store: Store, write_file: WriteFile, tmp_path: Path, damage: bytes, verify: bool
) -> None:
    path, ref = write_file("engine", b"engine")
    store.put_file(path, ref)
    entry = tmp_path / "cache-here" / blob_key(ref.sha256)
    entry.parent.mkdir(parents=True)
    entry.write_bytes(damage)
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back", verify=verify)
    assert (tmp_path / "back").read_bytes() == b"engine"
    assert entry.read_bytes() == b"engine"


def test_a_file_set_travels_as_a_whole(
    open_store: Callable[..., Store], make_files: MakeFiles, tmp_path: Path
) -> None:
    big = os.urandom(6 * MIB)
    directory, files = make_files(engine=big, config=b"{}", twin=b"{}")
    (directory / "sub").mkdir()
    (directory / "sub" / "vocab").write_bytes(b"tokens")
    files = describe_directory(directory)
    here = open_store()
    seen: list[Progress] = []
    assert here.put_files(directory, files, seen.append) == PutSummary(3, 6 * MIB + 8, 0, 0)
    assert seen[-1].done == seen[-1].total == 6 * MIB + 8
    assert here.put_files(directory, files) == PutSummary(0, 0, 3, 6 * MIB + 8)
    seen.clear()
    open_store("another").materialise(files, tmp_path / "out", on_progress=seen.append)
    assert describe_directory(tmp_path / "out") == files
    assert seen[-1].done == seen[-1].total == 6 * MIB + 10


def test_the_published_copy_is_downloaded_even_when_it_is_cached(
    store: Store, s3: Any, make_files: MakeFiles, tmp_path: Path
) -> None:
    directory, files = make_files(engine=b"engine")
    store.put_files(directory, files)
    store.add_to_cache(directory / "engine", files[0])
    store.materialise(files, tmp_path / "published", use_cache=False)
    assert (tmp_path / "published" / "engine").read_bytes() == b"engine"
    s3.client.delete_object(Bucket=s3.bucket, Key=blob_key(files[0].sha256))
    with pytest.raises(BlobMissingError):
        store.materialise(files, tmp_path / "again", use_cache=False)
    assert not (tmp_path / "again").exists()


def test_a_directory_with_something_in_it_is_left_alone(
    store: Store, make_files: MakeFiles
) -> None:
    directory, files = make_files(engine=b"engine")
    store.put_files(directory, files)
    with pytest.raises(DestinationTakenError, match="something here already"):
        store.materialise(files, directory)
    assert (directory / "engine").read_bytes() == b"engine"


def test_an_empty_directory_may_be_filled(
    store: Store, make_files: MakeFiles, tmp_path: Path
) -> None:
    directory, files = make_files(engine=b"engine")
    store.put_files(directory, files)
    (tmp_path / "empty").mkdir()
    store.materialise(files, tmp_path / "empty")
    assert describe_directory(tmp_path / "empty") == files


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_full_disk_is_named_and_leaves_nothing_behind(
    open_store: Callable[..., Store],
    make_files: MakeFiles,
    small_disk: Path,
    use_cache: bool,
) -> None:
    directory, files = make_files(engine=os.urandom(3 * MIB))
    store = open_store(cache_dir=small_disk / "cache")
    store.put_files(directory, files)
    with pytest.raises(DiskFullError, match="the disk is full"):
        store.materialise(files, small_disk / "out", use_cache=use_cache)
    assert not (small_disk / "out").exists()
    assert cached_files(small_disk) == []
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    store.materialise(files, small_disk / "out", use_cache=use_cache)
    assert describe_directory(small_disk / "out") == files


def test_a_cache_on_another_disk_is_copied_from(
    open_store: Callable[..., Store], make_files: MakeFiles, small_disk: Path, tmp_path: Path
) -> None:
    directory, files = make_files(engine=b"engine")
    store = open_store(cache_dir=small_disk)
    store.add_to_cache(directory / "engine", files[0])
    store.materialise(files, tmp_path / "out")
    assert describe_directory(tmp_path / "out") == files
