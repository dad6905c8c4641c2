"""An engine travels as a tar file; nothing in a tar that others wrote can do harm."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtforge.files import FileRef, describe_directory
from trtforge.store import AliasName, Manifest, Store
from trtforge.store.archive import ArchiveInvalidError, export_engine, import_engine
from trtforge.store.benchmarks import BenchedPoint, BenchedValue, BenchmarkRecord, Benchmarks
from trtforge.store.gates import GateRecord, GateRecords
from trtforge.store.layout import blob_key
from trtforge.store.manifests import ManifestIdError
from trtforge.store.transfer import BlobMissingError

MIB = 1 << 20
MakeFiles = Callable[..., tuple[Path, list[FileRef]]]
MakeManifest = Callable[..., Manifest]
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def made(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest, tmp_path: Path
) -> tuple[Manifest, Path]:
    """A published engine and its archive; the bucket is empty again."""
    directory, files = make_files(engine=b"\x07" * (3 * MIB + 5), config=b"{}", same=b"{}")
    manifest = store.publish(make_manifest(files), directory)
    archive = tmp_path / "engine.tar"
    export_engine(store, manifest, archive)
    for key in list(store.bucket.keys("")):
        store.bucket.delete(key)
    return manifest, archive


RUN = "bench-20261123T140000Z-5d41402a-0a1b2c"
FILES = {"report.json": b'{"format":1}', "requests.jsonl": b'{"who": "engine"}\n' * 9}


@pytest.fixture
def known(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest, tmp_path: Path
) -> tuple[Manifest, Path]:
    """The archive of an engine that failed a gate, was let pass, and was measured again."""
    directory, files = make_files(engine=b"engine", config=b"{}")
    manifest = store.publish(make_manifest(files), directory)
    records = GateRecords(store.bucket)
    records.put(
        GateRecord(
            kind="verdict",
            engine_id=manifest.engine_id,
            gates={"performance": {"passed": False}},
            evidence=(store.put_bytes(b'{"new": []}', "performance.json"),),
            by="ada",
        )
    )
    records.override(manifest, "half the size", by="ada")
    for name, data in FILES.items():
        store.put_run_file(RUN, name, data)
    store.put_run_file("of-another-engine", "report.json", b"{}")
    Benchmarks(store.bucket).put(benchmark_of(manifest.engine_id))
    archive = tmp_path / "known.tar"
    export_engine(store, manifest, archive)
    return manifest, archive


def benchmark_of(engine_id: str, run_id: str = RUN) -> BenchmarkRecord:
    value = BenchedValue(mean=100.0, low=99.0, high=101.0, n=3)
    point = BenchedPoint(
        concurrency=1, input_tokens=8, output_tokens=4, values={"output_tokens_per_s": value}
    )
    return BenchmarkRecord(
        engine_id=engine_id,
        run_id=run_id,
        device="CPU",
        workload="8/4",
        boundary="in process",
        points=(point,),
        machine={},
        by="ada",
    )


@pytest.fixture
def site(open_store: Callable[..., Store]) -> Store:
    """A store far away."""
    return open_store("far-away")


def members(archive: Path) -> list[Member]:
    with tarfile.open(archive) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def write(archive: Path, contents: list[Member], **options: Any) -> Path:
    with tarfile.open(archive, "w", **options) as tar:
        for info, data in contents:
            tar.addfile(info, io.BytesIO(data))
    return archive


def extra(name: str, data: bytes = b"", **attributes: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, data


def test_an_engine_comes_back_whole(
    made: tuple[Manifest, Path], site: Store, tmp_path: Path
) -> None:
    manifest, archive = made
    assert import_engine(site, archive) == manifest
    found = site.get_manifest(manifest.engine_id)
    assert found == manifest
    site.materialise(found.core.files, tmp_path / "back", use_cache=False)
    assert describe_directory(tmp_path / "back") == list(manifest.core.files)
    assert list(site.list_aliases()) == []
    assert import_engine(site, archive) == manifest


def test_the_same_engine_gives_the_same_archive_wherever_its_files_come_from(
    made: tuple[Manifest, Path], site: Store, tmp_path: Path
) -> None:
    manifest, archive = made
    import_engine(site, archive)
    size_bytes = export_engine(site, manifest, tmp_path / "from-cache.tar")
    assert (tmp_path / "from-cache.tar").read_bytes() == archive.read_bytes()
    assert size_bytes == archive.stat().st_size


def test_any_tar_program_reads_it(made: tuple[Manifest, Path]) -> None:
    manifest, archive = made
    names = [info.name for info, _ in members(archive)]
    assert names == [
        "manifest.json",
        *sorted({blob_key(ref.sha256) for ref in manifest.core.files}),
    ]
    assert members(archive)[0][1] == manifest.to_bytes()


def test_an_engine_that_is_not_whole_is_not_exported(
    store: Store, make_files: MakeFiles, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    directory, files = make_files(engine=b"engine")
    manifest = store.publish(make_manifest(files), directory)
    store.bucket.delete(blob_key(files[0].sha256))
    with pytest.raises(BlobMissingError):
        export_engine(store, manifest, tmp_path / "engine.tar")
    assert not (tmp_path / "engine.tar").exists()


def lacking(contents: list[Member]) -> list[Member]:
    return contents[:-1]


def reordered(contents: list[Member]) -> list[Member]:
    return contents[::-1]


def doubled(contents: list[Member]) -> list[Member]:
    return [*contents, contents[-1]]


def flipped(contents: list[Member]) -> list[Member]:
    info, data = contents[-1]
    return [*contents[:-1], (info, data[:-1] + bytes([data[-1] ^ 1]))]


def longer(contents: list[Member]) -> list[Member]:
    info, data = contents[-1]
    return [*contents[:-1], extra(info.name, data + b"x")]


HOSTILE: dict[str, Callable[[list[Member]], list[Member]]] = {
    "a file is missing": lacking,
    "the manifest is not first": reordered,
    "a file comes twice": doubled,
    "a byte is flipped": flipped,
    "a file is too long": longer,
    "nothing but the end": lambda _: [],
    "a path outside": lambda c: [*c, extra("../../escaped", b"x")],
    "an absolute path": lambda c: [*c, extra("/tmp/escaped", b"x")],
    "a symbolic link": lambda c: [c[0], extra("link", type=tarfile.SYMTYPE, linkname="/"), *c[1:]],
    "a hard link": lambda c: [
        *c,
        extra(c[1][0].name, type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    ],
    "a directory": lambda c: [c[0], extra("blobs", type=tarfile.DIRTYPE), *c[1:]],
    "a device": lambda c: [*c, extra("disk", type=tarfile.BLKTYPE)],
    "a file nobody asked for": lambda c: [*c, extra("blobs/sha256/00/" + "0" * 64, b"x")],
    "a huge manifest": lambda c: [extra("manifest.json", bytes(17 * MIB)), *c[1:]],
    "a long name": lambda c: [*c, extra("x" * 300, b"x")],
}


@pytest.mark.parametrize("how", HOSTILE)
def test_an_archive_that_is_not_what_export_writes_publishes_nothing(
    made: tuple[Manifest, Path], site: Store, tmp_path: Path, how: str
) -> None:
    archive = write(tmp_path / "hostile.tar", HOSTILE[how](members(made[1])))
    before = {path for path in tmp_path.rglob("*") if "cache-far-away" not in path.parts}
    with pytest.raises(ArchiveInvalidError, match="not an archive of an engine"):
        import_engine(site, archive)
    assert list(site.bucket.keys("")) == []
    assert {p for p in tmp_path.rglob("*") if "cache-far-away" not in p.parts} == before
    assert not Path("/tmp/escaped").exists()


def test_a_manifest_that_was_changed_is_refused(
    made: tuple[Manifest, Path], site: Store, tmp_path: Path
) -> None:
    (info, data), *rest = members(made[1])
    changed = data.replace(b"apache-2.0", b"proprietary")
    archive = write(tmp_path / "changed.tar", [extra(info.name, changed), *rest])
    with pytest.raises(ManifestIdError):
        import_engine(site, archive)
    assert list(site.bucket.keys("")) == []


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 5000, 3 * MIB])
def test_an_archive_that_is_cut_off_publishes_nothing(
    made: tuple[Manifest, Path], site: Store, kept: int
) -> None:
    archive = made[1]
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(ArchiveInvalidError, match="cut off"):
        import_engine(site, archive)
    assert list(site.bucket.keys("")) == []


def test_a_file_that_is_no_tar(site: Store, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello" * 500)
    with pytest.raises(ArchiveInvalidError, match="not a tar file"):
        import_engine(site, tmp_path / "x.tar")
    with pytest.raises(ArchiveInvalidError, match="cannot be opened"):
        import_engine(site, tmp_path / "none.tar")


def test_imported_engines_can_be_promoted(made: tuple[Manifest, Path], site: Store) -> None:
    manifest = import_engine(site, made[1])
    name = AliasName("org/model", "cpu", "aoti", "prod")
    assert site.set_alias(name, manifest.engine_id, by="alice").moved


class TestWhatIsKnownOfAnEngine:
    def test_verdicts_overrides_and_benchmarks_arrive_with_it(
        self, store: Store, known: tuple[Manifest, Path], site: Store, tmp_path: Path
    ) -> None:
        manifest, archive = known
        said = GateRecords(store.bucket).of(manifest.engine_id)
        measured = Benchmarks(store.bucket).of(manifest.engine_id)
        emptied(store)
        import_engine(site, archive)
        assert GateRecords(site.bucket).of(manifest.engine_id) == said
        assert Benchmarks(site.bucket).of(manifest.engine_id) == measured
        assert {name: site.get_run_file(RUN, name) for name in FILES} == FILES
        assert site.get_run_file("of-another-engine", "report.json") is None
        (evidence,) = said[0].evidence
        site.get_file(evidence.sha256, evidence.size_bytes, tmp_path / "performance.json")
        state = GateRecords(site.bucket).state(manifest)
        assert (state.failed, state.blocks) == (("performance",), False)
        assert not list(site.cache.root.glob(".import-*"))

    def test_at_no_moment_is_it_there_without_its_verdicts(
        self, store: Store, known: tuple[Manifest, Path], site: Store, hooks: Any
    ) -> None:
        emptied(store)
        before: list[str] = []

        def see(params: dict[str, Any], **_: Any) -> None:
            if "/manifests/" in params["url"]:
                before.extend(key.partition("/")[0] for key in site.bucket.keys(""))

        hooks("before-call.s3.PutObject", see)
        import_engine(site, known[1])
        assert {"gates", "benchmarks", "runs", "blobs"} <= set(before)
        assert "manifests" not in before

    def test_it_can_be_imported_twice_and_exported_again(
        self, store: Store, known: tuple[Manifest, Path], site: Store, tmp_path: Path
    ) -> None:
        manifest, archive = known
        emptied(store)
        for _ in range(2):
            import_engine(site, archive)
        assert len(GateRecords(site.bucket).of(manifest.engine_id)) == 2
        export_engine(site, manifest, tmp_path / "again.tar")
        assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()

    def test_names_in_the_archive_are_those_of_any_engine(
        self, known: tuple[Manifest, Path]
    ) -> None:
        names = [info.name for info, _ in members(known[1])]
        assert [name.partition("/")[0] for name in names] == [
            "manifest.json", "gates", "gates", "benchmarks", "runs", "runs", *["blobs"] * 3,
        ]  # fmt: skip
        assert names[4:6] == [f"runs/{RUN}/{name}" for name in sorted(FILES)]

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("gates/../../aliases/x.json", "no benchmark of the engine names it"),
            (f"runs/{RUN}/../../manifests/x", "no benchmark of the engine names it"),
            (f"runs/{RUN}-2/report.json", "no benchmark of the engine names it"),
            (f"runs/{RUN}", "no benchmark of the engine names it"),
            (f"runs/{RUN}/report.json", "it comes twice"),
            ("aliases/org--model/CPU/aoti/prod.json", "no benchmark of the engine names it"),
        ],
    )
    def test_no_other_name_is_taken(
        self,
        store: Store,
        known: tuple[Manifest, Path],
        site: Store,
        tmp_path: Path,
        name: str,
        what: str,
    ) -> None:
        contents = members(known[1])
        hostile = write(tmp_path / "x.tar", [*contents[:6], extra(name, b"{}"), *contents[6:]])
        emptied(store)
        with pytest.raises(ArchiveInvalidError, match=what):
            import_engine(site, hostile)
        assert list(site.bucket.keys("")) == []

    @pytest.mark.parametrize("kind", ["gates", "benchmarks"])
    def test_a_record_of_another_engine_is_refused(
        self, store: Store, known: tuple[Manifest, Path], site: Store, tmp_path: Path, kind: str
    ) -> None:
        manifest, archive = known
        contents = [
            extra(info.name, data.replace(manifest.engine_id.encode(), b"0" * 64))
            if info.name.startswith(kind)
            else (info, data)
            for info, data in members(archive)
        ]
        hostile = write(tmp_path / "x.tar", contents)
        emptied(store)
        with pytest.raises(ArchiveInvalidError, match="it is about another engine"):
            import_engine(site, hostile)
        assert list(site.bucket.keys("")) == []

    def test_evidence_that_is_missing_is_missed(
        self, store: Store, known: tuple[Manifest, Path], site: Store, tmp_path: Path
    ) -> None:
        (evidence,) = GateRecords(store.bucket).of(known[0].engine_id)[0].evidence
        contents = [m for m in members(known[1]) if not m[0].name.endswith(evidence.sha256)]
        emptied(store)
        with pytest.raises(ArchiveInvalidError, match="it lacks 1 files"):
            import_engine(site, write(tmp_path / "x.tar", contents))
        assert list(site.bucket.keys("")) == []


def emptied(store: Store) -> None:
    for key in list(store.bucket.keys("")):
        store.bucket.delete(key)
