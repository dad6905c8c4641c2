import dataclasses
import hashlib
import random
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trtforge.files import FileRef, UnsafePathError, describe_directory, files_digest

HEX = "0" * 64
names = st.from_regex(r"[a-zA-Z0-9ä_. -]{1,8}", fullmatch=True).filter(
    lambda n: n not in (".", "..")
)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
refs = st.builds(
    FileRef,
    paths,
    st.integers(0, 1 << 50),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
)
file_sets = st.lists(refs, min_size=1, max_size=5, unique_by=lambda r: r.path)


class TestFileRef:
    @given(st.text(max_size=12) | st.text(alphabet="a./\\", max_size=8))
    def test_a_path_that_is_taken_stays_inside_its_directory_under_one_name(
        self, path: str
    ) -> None:
        try:
            FileRef(path, 0, HEX)
        except UnsafePathError:
            return
        parts = path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\0" not in path
        assert PurePosixPath("/root", path).is_relative_to("/root")

    @given(paths)
    def test_an_ordinary_relative_path_is_taken(self, path: str) -> None:
        assert FileRef(path, 1, HEX).path == path

    @pytest.mark.parametrize(
        "path",
        [
            *("", ".", "..", "/", "/etc/passwd", "//x", "../x", "a/../x", "a/..", "..\\x", "a\\b"),
            *("a//b", "a/", "./a", "a/./b", "a\0b"),
        ],
    )
    def test_any_other_is_refused_with_the_path(self, path: str) -> None:
        with pytest.raises(UnsafePathError) as caught:
            FileRef(path, 0, HEX)
        assert caught.value.field == "path"
        assert caught.value.value == path

    def test_names_that_only_look_dangerous_are_taken(self) -> None:
        for path in ("..a", "a..b/c", "...", "~", "a b", "-rf", "C:x"):
            assert FileRef(path, 0, HEX).path == path

    @given(refs)
    def test_it_survives_json(self, ref: FileRef) -> None:
        assert FileRef.from_json(ref.to_json()) == ref


class TestFilesDigest:
    @given(file_sets, st.randoms(use_true_random=False))
    def test_the_order_of_the_files_does_not_matter(
        self, files: list[FileRef], source: random.Random
    ) -> None:
        shuffled = files.copy()
        source.shuffle(shuffled)
        assert files_digest(shuffled) == files_digest(files)

    @given(file_sets, st.data())
    def test_a_change_of_any_name_size_or_byte_changes_it(
        self, files: list[FileRef], data: st.DataObject
    ) -> None:
        number = data.draw(st.integers(0, len(files) - 1))
        other = data.draw(refs)
        field = data.draw(st.sampled_from(["path", "size_bytes", "sha256"]))
        changed = dataclasses.replace(files[number], **{field: getattr(other, field)})
        assume(changed != files[number])
        assert files_digest([*files[:number], changed, *files[number + 1 :]]) != files_digest(files)

    @given(file_sets)
    def test_a_missing_file_changes_it(self, files: list[FileRef]) -> None:
        assert files_digest(files[1:]) != files_digest(files)


class TestDescribeDirectory:
    def test_it_finds_all_files_below_and_hashes_them(self, tmp_path: Path) -> None:
        (tmp_path / "b").write_bytes(b"")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "c").write_bytes(b"content")
        assert describe_directory(tmp_path) == [
            FileRef("a/c", 7, hashlib.sha256(b"content").hexdigest()),
            FileRef("b", 0, hashlib.sha256(b"").hexdigest()),
        ]

    def test_it_takes_only_the_names_it_is_given(self, tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / name).write_text(name)
        assert [f.path for f in describe_directory(tmp_path, ["c", "a"])] == ["a", "c"]

    def test_a_name_outside_is_refused(self, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        inside.mkdir()
        (tmp_path / "secret").write_text("x")
        with pytest.raises(UnsafePathError):
            describe_directory(inside, ["../secret"])
