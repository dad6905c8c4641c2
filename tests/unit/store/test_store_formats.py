"""What version 1 of trtforge wrote must stay readable: the golden files are never rewritten."""

from pathlib import Path

import pytest

from trtforge.store.aliases import AliasRecord
from trtforge.store.manifests import Manifest
from trtforge.store.records import Record, UnknownFormatError, parse_record
from trtforge.store.stages import StageResult
from trtforge.store.timing import TimingHead

GOLDEN = Path(__file__).parents[2] / "fixtures" / "store-v1"
KINDS: dict[str, type[Record]] = {
    "stage": StageResult,
    "manifest": Manifest,
    "alias": AliasRecord,
    "timing-head": TimingHead,
}


def test_every_golden_file_has_a_kind() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_format_1_is_read_without_loss(name: str) -> None:
    data = (GOLDEN / f"{name}.json").read_bytes()
    record = parse_record(KINDS[name], data, name)
    assert record.format == 1
    assert record.to_bytes() == data.rstrip(b"\n")


@pytest.mark.parametrize("name", KINDS)
def test_a_newer_format_is_refused_with_what_to_do(name: str) -> None:
    data = (GOLDEN / f"{name}.json").read_bytes().replace(b'"format":1', b'"format":2')
    with pytest.raises(UnknownFormatError, match=r"format = 2: .* Install the version of trtforge"):
        parse_record(KINDS[name], data, name)
