import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtforge.engines.aoti.compile_cache import CompileCache, CompileCacheFormat, Entry

PREFILL = Entry("prefill", 12.5, {"a.so": b"machine code", "a.cpp": b"source", "empty": b""})
DECODE = Entry("decode", 8.0, {"b.so": bytes(range(256)) * 4})
KEYS = {"1" * 64: PREFILL, "2" * 64: DECODE}
ENTRIES = st.dictionaries(
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.builds(
        Entry,
        st.sampled_from(["prefill", "decode", "head_one"]),
        st.floats(0, 1e4),
        st.dictionaries(st.from_regex(r"[a-z0-9_]{1,12}\.[a-z]{1,4}", fullmatch=True), st.binary()),
    ),
    max_size=4,
)
in_a_shared_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A saved cache with two entries."""
    path = tmp_path / "model.cache"
    CompileCache(dict(KEYS)).save(path)
    return path


def rewrite(file: Path, index: Any, **members: bytes) -> None:
    """Replace the index and some members, keeping the archive sound."""
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content |= {"index.json": json.dumps(index).encode(), **members}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def index_of(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        index: dict[str, Any] = json.loads(archive.read("index.json"))
    return index


class TestRoundTrip:
    @in_a_shared_directory
    @given(entries=ENTRIES)
    def test_what_was_saved_is_loaded(self, tmp_path: Path, entries: dict[str, Entry]) -> None:
        cache = CompileCache()
        for key, entry in entries.items():
            cache.put(key, entry)
        cache.save(tmp_path / "model.cache")
        loaded, complaint = CompileCache.load(tmp_path / "model.cache")
        assert complaint == ""
        assert len(loaded) == len(entries)
        assert {key: loaded.get(key) for key in entries} == entries

    def test_the_same_entries_give_the_same_bytes(self, file: Path, tmp_path: Path) -> None:
        loaded, _ = CompileCache.load(file)
        loaded.save(tmp_path / "again.cache")
        assert (tmp_path / "again.cache").read_bytes() == file.read_bytes()

    def test_it_is_a_zip_archive_with_an_index_anyone_can_read(self, file: Path) -> None:
        index = index_of(file)
        assert index["format"] == 1
        described = index["entries"]["1" * 64]
        assert (described["graph"], described["compile_s"]) == ("prefill", 12.5)
        assert described["files"]["a.so"] == hashlib.sha256(b"machine code").hexdigest()

    def test_nothing_but_the_cache_is_left_beside_it(self, file: Path) -> None:
        assert list(file.parent.iterdir()) == [file]

    def test_a_save_over_an_older_file_replaces_it(self, file: Path) -> None:
        CompileCache({"3" * 64: DECODE}).save(file)
        loaded, _ = CompileCache.load(file)
        assert (len(loaded), loaded.get("3" * 64)) == (1, DECODE)

    def test_a_key_that_is_not_there_gives_none(self, file: Path) -> None:
        assert CompileCache.load(file)[0].get("0" * 64) is None

    def test_no_file_is_an_empty_cache_without_complaint(self, tmp_path: Path) -> None:
        loaded, complaint = CompileCache.load(tmp_path / "model.cache")
        assert (len(loaded), complaint) == (0, "")


class TestDamage:
    @pytest.mark.parametrize(
        "content",
        [b"", b"PK", b"not a zip archive", b"\0" * 1000, b"PK\x05\x06" + b"\0" * 18],
    )
    def test_garbage_is_an_empty_cache_with_a_complaint(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        loaded, complaint = CompileCache.load(file)
        assert len(loaded) == 0
        assert complaint.startswith("unreadable cache, using a fresh one (")

    def test_a_directory_is_an_empty_cache_with_a_complaint(self, tmp_path: Path) -> None:
        loaded, complaint = CompileCache.load(tmp_path)
        assert len(loaded) == 0
        assert "unreadable cache" in complaint

    @pytest.mark.parametrize(
        "index",
        [
            *(None, 5, [], {}, {"format": 1}, {"format": 1, "entries": []}),
            {"format": 1, "entries": {"1" * 64: None}},
            {"format": 1, "entries": {"1" * 64: {}}},
            {"format": 1, "entries": {"1" * 64: {"files": []}}},
        ],
    )
    def test_an_index_of_another_shape_is_never_fatal(self, file: Path, index: object) -> None:
        rewrite(file, index)
        loaded, complaint = CompileCache.load(file)
        assert len(loaded) == 0
        assert complaint

    def test_another_format_is_an_empty_cache_that_says_so(self, file: Path) -> None:
        rewrite(file, index_of(file) | {"format": 2})
        loaded, complaint = CompileCache.load(file)
        assert len(loaded) == 0
        assert complaint == "cache of format 2, using a fresh one"

    def test_an_entry_that_does_not_match_its_digest_is_dropped_and_others_kept(
        self, file: Path
    ) -> None:
        rewrite(file, index_of(file), **{f"{'1' * 64}/a.so": b"other code"})
        loaded, complaint = CompileCache.load(file)
        assert loaded.get("1" * 64) is None
        assert loaded.get("2" * 64) == DECODE
        assert complaint == "entry 111111111111 does not match its digest and was dropped"

    def test_an_entry_whose_file_is_missing_is_dropped_and_others_kept(self, file: Path) -> None:
        index = index_of(file)
        index["entries"]["1" * 64]["files"]["c.so"] = "0" * 64
        rewrite(file, index)
        loaded, complaint = CompileCache.load(file)
        assert loaded.get("1" * 64) is None
        assert loaded.get("2" * 64) == DECODE
        assert complaint

    def test_an_entry_with_a_flipped_bit_is_dropped_and_others_kept(self, file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data.replace(b"machine code", b"machine cODe"))
        loaded, complaint = CompileCache.load(file)
        assert loaded.get("1" * 64) is None
        assert loaded.get("2" * 64) == DECODE
        assert complaint

    @in_a_shared_directory
    @given(data=st.data())
    def test_whatever_the_damage_no_wrong_entry_is_loaded(
        self, tmp_path: Path, data: st.DataObject
    ) -> None:
        file = tmp_path / "model.cache"
        CompileCache(dict(KEYS)).save(file)
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
        file.write_bytes(content)
        loaded, _ = CompileCache.load(file)
        for key, entry in KEYS.items():
            found = loaded.get(key)
            assert found is None or found.files == entry.files


class TestLimit:
    def test_of_more_than_64_entries_the_newest_are_kept(self) -> None:
        cache = CompileCache()
        for number in range(70):
            cache.put(str(number), DECODE)
        assert len(cache) == 64
        assert cache.get("5") is None
        assert cache.get("6") == DECODE
        assert cache.get("69") == DECODE

    def test_an_entry_put_again_becomes_the_newest(self) -> None:
        cache = CompileCache()
        for number in range(64):
            cache.put(str(number), DECODE)
        cache.put("0", PREFILL)
        cache.put("new", DECODE)
        assert cache.get("0") == PREFILL
        assert cache.get("1") is None


class TestToolchain:
    def test_what_another_toolchain_compiled_is_not_used(self, tmp_path: Path) -> None:
        file = tmp_path / "model.cache"
        CompileCache(dict(KEYS), "torch-2.13").save(file)
        loaded, complaint = CompileCache.load(file, "torch-2.14")
        assert (len(loaded), loaded.toolchain) == (0, "torch-2.14")
        assert complaint == "cache of another toolchain, using a fresh one"
        loaded, complaint = CompileCache.load(file, "torch-2.13")
        assert (len(loaded), complaint) == (2, "")

    def test_a_cache_of_before_toolchains_were_written_down_is_used(self, file: Path) -> None:
        loaded, complaint = CompileCache.load(file, "torch-2.13")
        assert (len(loaded), complaint) == (2, "")
        loaded.save(file)
        assert index_of(file)["toolchain"] == "torch-2.13"


def numbered(*numbers: int) -> CompileCache:
    """A cache with an entry for each number, the last one the newest."""
    return CompileCache({str(n): Entry(f"graph {n}", 1.0, {"a.so": b"%d" % n}) for n in numbers})


class TestMerge:
    @given(mine=st.sets(st.integers(0, 40)), theirs=st.sets(st.integers(0, 40)))
    def test_everything_that_was_in_either_is_in_both_together(
        self, mine: set[int], theirs: set[int]
    ) -> None:
        merged = numbered(*mine).merged(numbered(*theirs))
        assert len(merged) == len(mine | theirs)
        for number in mine | theirs:
            entry = merged.get(str(number))
            assert entry
            assert entry.files == {"a.so": b"%d" % number}

    def test_of_too_many_the_oldest_of_both_are_dropped(self) -> None:
        merged = numbered(*range(64)).merged(numbered(*range(100, 164)))
        assert len(merged) == 64
        assert all(merged.get(str(n)) for n in (*range(32, 64), *range(132, 164)))

    def test_of_two_entries_for_one_graph_one_is_kept_whole(self) -> None:
        merged = CompileCache({"k": PREFILL}).merged(CompileCache({"k": DECODE}))
        assert (len(merged), merged.get("k")) == (1, PREFILL)

    def test_merging_with_itself_changes_no_byte(self, file: Path, tmp_path: Path) -> None:
        merged = tmp_path / "merged.cache"
        assert CompileCacheFormat().merge(file, file, merged) == ""
        assert merged.read_bytes() == file.read_bytes()

    def test_files_are_counted_and_merged(self, file: Path, tmp_path: Path) -> None:
        other, merged = tmp_path / "other.cache", tmp_path / "merged.cache"
        CompileCache({"3" * 64: DECODE}, "torch-2.13").save(other)
        form = CompileCacheFormat()
        assert form.merge(file, other, merged) == ""
        assert (form.count(file), form.count(other), form.count(merged)) == (2, 1, 3)
        assert index_of(merged)["toolchain"] == "torch-2.13"

    def test_rubbish_counts_as_nothing_and_is_told(self, file: Path, tmp_path: Path) -> None:
        other, merged = tmp_path / "other.cache", tmp_path / "merged.cache"
        other.write_bytes(b"rubbish")
        form = CompileCacheFormat()
        assert form.count(other) is None
        assert form.merge(file, other, merged).startswith("unreadable cache")
        assert merged.read_bytes() == file.read_bytes()

    def test_what_another_toolchain_compiled_is_left_out(self, tmp_path: Path) -> None:
        mine, theirs, merged = (tmp_path / name for name in ("mine", "theirs", "merged"))
        CompileCache({"1" * 64: PREFILL}, "torch-2.13").save(mine)
        CompileCache({"2" * 64: DECODE}, "torch-2.14").save(theirs)
        assert "another toolchain" in CompileCacheFormat().merge(mine, theirs, merged)
        assert merged.read_bytes() == mine.read_bytes()
