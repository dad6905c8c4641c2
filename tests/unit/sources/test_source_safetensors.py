"""A safetensors file that is not whole is found by its header."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.sources import BrokenSafetensorsError, LfsPointerError, check_safetensors


def _file(path: Path, data_bytes: int, *, promised_bytes: int | None = None) -> Path:
    end = data_bytes if promised_bytes is None else promised_bytes
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "b": {"dtype": "U8", "shape": [end - end // 2], "data_offsets": [end // 2, end]},
            "a": {"dtype": "U8", "shape": [end // 2], "data_offsets": [0, end // 2]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data_bytes))
    return path


def test_a_whole_file_passes(model: Path) -> None:
    check_safetensors(model / "model.safetensors")


def test_a_cut_off_file_is_named_with_both_sizes(model: Path) -> None:
    path = model / "model.safetensors"
    whole_bytes = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BrokenSafetensorsError) as caught:
        check_safetensors(path)
    for part in ("model.safetensors", str(whole_bytes), str(whole_bytes - 1), "cut off"):
        assert part in str(caught.value)


@given(st.data())
def test_every_shorter_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = _file(tmp_path_factory.getbasetemp() / "cut.safetensors", 64)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(BrokenSafetensorsError, match="cut off"):
        check_safetensors(path)


def test_bytes_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenSafetensorsError, match="describes"):
        check_safetensors(_file(tmp_path / "long.safetensors", 65, promised_bytes=64))


@pytest.mark.parametrize("content", [b"\xff" * 64, (20).to_bytes(8, "little") + b"[" * 20])
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(BrokenSafetensorsError, match="not safetensors"):
        check_safetensors(path)


def test_a_clone_without_its_lfs_files_is_told_to_pull_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(LfsPointerError, match="git lfs pull"):
        check_safetensors(path)
