"""What version 1 of trtforge wrote must stay readable: the golden files are never rewritten.

A golden file is `<kind>.json`; when a kind gets another field, its golden file stays, and
`<kind>@<what is new>.json` is put beside it.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trtforge.canonical import canonical_json, digest
from trtforge.store.manifests import Manifest, ManifestIdError
from trtforge.store.records import Record, RecordInvalidError, UnknownFormatError, parse_record
from trtforge.store.schemas import record_kinds, schema, schema_text

_ROOT = Path(__file__).parents[3]
GOLDEN = _ROOT / "tests" / "fixtures" / "store-v1"
SCHEMAS = _ROOT / "docs" / "schemas"
KINDS = record_kinds()
GOLDEN_FILES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def golden(name: str) -> tuple[type[Record], bytes]:
    return KINDS[name.partition("@")[0]], (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")


def with_field(value: Any, *path: str) -> Any:
    """The same JSON with a field that only a newer trtforge knows, at `path`."""
    if not path:
        return {**value, "of_a_newer_version": {"a": [1, 2.5, None]}}
    return {**value, path[0]: with_field(value[path[0]], *path[1:])}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_has_a_golden_file(kind: str) -> None:
    assert kind in GOLDEN_FILES, f"put a {KINDS[kind].__name__} into {GOLDEN.name}/{kind}.json"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_has_a_schema_that_is_up_to_date(kind: str) -> None:
    path = SCHEMAS / f"{kind}.json"
    assert path.is_file(), "run python -m trtforge.store.schemas docs/schemas"
    assert path.read_text() == schema_text(KINDS[kind]), (
        "run python -m trtforge.store.schemas docs/schemas"
    )


def test_no_schema_and_no_golden_file_is_of_a_kind_that_is_gone() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} <= set(KINDS)
    assert {name.partition("@")[0] for name in GOLDEN_FILES} <= set(KINDS)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_format_1_is_read_without_loss(name: str) -> None:
    kind, data = golden(name)
    record = parse_record(kind, data, name)
    assert record.format == 1
    assert record.to_bytes() == data


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_a_golden_file_is_what_its_schema_says(name: str) -> None:
    kind, data = golden(name)
    jsonschema.Draft202012Validator(schema(kind)).validate(json.loads(data))


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_the_schema_and_the_reader_refuse_the_same(name: str) -> None:
    kind, data = golden(name)
    validator = jsonschema.Draft202012Validator(schema(kind))
    whole = json.loads(data)
    for field in schema(kind)["required"]:
        less = {key: value for key, value in whole.items() if key != field}
        assert not validator.is_valid(less), field
        with pytest.raises((RecordInvalidError, UnknownFormatError)):
            parse_record(kind, canonical_json(less), name)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_a_newer_format_is_refused_with_what_to_do(name: str) -> None:
    kind, data = golden(name)
    data = data.replace(b'"format":1', b'"format":2')
    with pytest.raises(UnknownFormatError, match=r"format = 2: .* Install the version of trtforge"):
        parse_record(kind, data, name)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_fields_of_a_newer_writer_are_kept_when_a_record_is_written_again(name: str) -> None:
    kind, data = golden(name)
    newer = canonical_json(with_field(json.loads(data)))
    assert parse_record(kind, newer, name).to_bytes() == newer


@pytest.mark.parametrize("place", [(), ("core",), ("core", "model"), ("core", "toolchain")])
def test_the_id_of_a_newer_writers_manifest_is_checked_on_what_it_wrote(
    place: tuple[str, ...],
) -> None:
    value = with_field(json.loads(golden("manifest")[1]), *place)
    value["engine_id"] = digest(value["core"])
    data = canonical_json(value)
    manifest = parse_record(Manifest, data, "newer")
    assert manifest.to_bytes() == data
    assert parse_record(Manifest, manifest.to_bytes(), "again") == manifest


def test_a_file_of_a_newer_writer_keeps_its_new_field_under_the_id() -> None:
    value = json.loads(golden("manifest")[1])
    value["core"]["files"][0]["compression"] = "none"
    value["engine_id"] = digest(value["core"])
    data = canonical_json(value)
    assert parse_record(Manifest, data, "newer").to_bytes() == data


def test_an_old_core_keeps_its_id_when_a_field_with_a_default_is_added() -> None:
    class NewerCore(Manifest.model_fields["core"].annotation):  # type: ignore[misc,name-defined]
        added_later: int = 7

    class NewerManifest(Manifest):
        core: NewerCore

    data = golden("manifest")[1]
    manifest = parse_record(NewerManifest, data, "old")
    assert manifest.core.added_later == 7
    assert manifest.to_bytes() == data


def test_a_field_slipped_into_the_core_is_noticed() -> None:
    value = with_field(json.loads(golden("manifest")[1]), "core")
    with pytest.raises(ManifestIdError):
        parse_record(Manifest, canonical_json(value), "changed")
