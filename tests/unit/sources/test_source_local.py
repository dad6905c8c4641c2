"""Weights from a directory of this machine."""

import os
import shutil
from pathlib import Path

import pytest

from trtforge.checkpoint.safetensors_io import LfsPointerError, TruncatedFileError
from trtforge.progress import Progress
from trtforge.sources import (
    DestinationIsSourceError,
    LocalSource,
    NotEnoughDiskError,
    SourceChangedError,
    SourceDirectoryError,
    fetch,
    resolve,
)


def test_resolving_lists_the_model_and_its_licence(model: Path, selected: set[str]) -> None:
    resolved = resolve(LocalSource(model))
    assert {f.path for f in resolved.files} == selected
    assert resolved.uri == model.as_uri()
    assert resolved.revision is None
    assert resolved.licence == "apache-2.0"


def test_fetching_puts_exactly_the_model_there(
    model: Path, selected: set[str], tmp_path: Path
) -> None:
    files = fetch(resolve(LocalSource(model)), tmp_path / "dest")
    assert {f.path for f in files} == selected
    assert {p.name for p in (tmp_path / "dest").iterdir()} == selected
    for file in files:
        assert (tmp_path / "dest" / file.path).read_bytes() == (model / file.path).read_bytes()


def test_files_are_copied_so_that_a_later_edit_in_place_does_not_reach_them(
    model: Path, tmp_path: Path
) -> None:
    weights = model / "model.safetensors"
    blob = tmp_path / "blob"
    weights.rename(blob)
    weights.symlink_to(blob)
    fetch(resolve(LocalSource(model)), tmp_path / "dest")
    fetched = tmp_path / "dest" / "model.safetensors"
    before = fetched.read_bytes()
    with blob.open("r+b") as stream:
        stream.write(b"edited")
    assert not fetched.is_symlink()
    assert fetched.read_bytes() == before


def test_a_second_call_recognises_the_copies(model: Path, tmp_path: Path) -> None:
    resolved = resolve(LocalSource(model))
    copied = fetch(resolved, tmp_path / "copied")
    before = (tmp_path / "copied/config.json").stat().st_ino
    assert fetch(resolved, tmp_path / "copied") == copied
    assert (tmp_path / "copied/config.json").stat().st_ino == before


def test_a_full_disk_is_told_before_anything_is_copied(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    resolved = resolve(LocalSource(model))
    with pytest.raises(NotEnoughDiskError, match=rf"{resolved.size_bytes} bytes.*1000 are free"):
        fetch(resolved, tmp_path / "dest")
    assert list((tmp_path / "dest").iterdir()) == []


def test_a_file_that_changed_since_resolving_is_refused(model: Path, tmp_path: Path) -> None:
    resolved = resolve(LocalSource(model))
    with (model / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(SourceChangedError, match=r"config\.json changed"):
        fetch(resolved, tmp_path / "dest")
    assert not (tmp_path / "dest" / "config.json").exists()


def test_a_file_that_changes_during_the_copy_is_refused(model: Path, tmp_path: Path) -> None:
    def write_meanwhile(progress: Progress) -> None:
        if progress.what.startswith("fetching"):
            os.utime(model / "model.safetensors")

    with pytest.raises(SourceChangedError, match=r"model\.safetensors changed"):
        fetch(resolve(LocalSource(model)), tmp_path / "dest", on_progress=write_meanwhile)


def test_a_file_that_went_away_is_named(model: Path, tmp_path: Path) -> None:
    resolved = resolve(LocalSource(model))
    (model / "tokenizer.json").unlink()
    with pytest.raises(SourceChangedError, match=r"tokenizer\.json"):
        fetch(resolved, tmp_path / "dest")


def test_the_source_is_never_its_own_destination(model: Path) -> None:
    resolved = resolve(LocalSource(model))
    (model / "config.json").touch()
    with pytest.raises(DestinationIsSourceError):
        fetch(resolved, model)
    assert (model / "config.json").exists()


def test_cut_off_weights_are_refused(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TruncatedFileError, match=r"model\.safetensors"):
        fetch(resolve(LocalSource(model)), tmp_path / "dest")


def test_a_clone_without_its_weights_is_told_so(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(LfsPointerError):
        fetch(resolve(LocalSource(model)), tmp_path / "dest")


def test_progress_rises_to_the_total(model: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    resolved = resolve(LocalSource(model))
    fetch(resolved, tmp_path / "dest", on_progress=seen.append)
    for what in {p.what for p in seen}:
        done = [p.done for p in seen if p.what == what]
        assert done == sorted(done)
        assert done[-1] == resolved.size_bytes
    assert {p.unit for p in seen} == {"bytes"}
    assert {p.total for p in seen} == {resolved.size_bytes}


def test_a_missing_directory_that_looks_like_a_repository_is_answered_with_hf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceDirectoryError, match="write hf://Qwen/Qwen2"):
        resolve(LocalSource(Path("Qwen/Qwen2")))


def test_a_file_is_not_a_source(model: Path) -> None:
    with pytest.raises(SourceDirectoryError, match="directory that holds"):
        resolve(LocalSource(model / "model.safetensors"))
