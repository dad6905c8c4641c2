"""How the text of `model.source` is read."""

import string
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.errors import InputError
from trtforge.sources import (
    HubSource,
    LocalSource,
    MalformedSourceError,
    S3Source,
    UnknownSchemeError,
    parse_source,
)

_word = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
_name = st.lists(_word, min_size=1, max_size=3).map(lambda w: "-".join(w).replace("--", "-"))
_revision = st.lists(_word, min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from(["/", "-", "."]).map(lambda sep: sep.join(words))
)
_bucket = st.text(string.ascii_lowercase + string.digits, min_size=3, max_size=20)
_key = st.text(st.characters(exclude_categories=("C", "Z")), max_size=30)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://meta-llama/Llama-3.1-8B", HubSource("meta-llama/Llama-3.1-8B", "main")),
        ("hf://org/name@v1.0", HubSource("org/name", "v1.0")),
        ("hf://org/name@refs/pr/3", HubSource("org/name", "refs/pr/3")),
        ("s3://bucket", S3Source("bucket", "")),
        ("s3://bucket/", S3Source("bucket", "")),
        ("s3://bucket/models/llama/", S3Source("bucket", "models/llama")),
        ("/models/llama", LocalSource(Path("/models/llama"))),
        ("models/llama", LocalSource(Path("models/llama"))),
        ("org/name@main", LocalSource(Path("org/name@main"))),
        ("file:///models/my%20llama", LocalSource(Path("/models/my llama"))),
        ("file://localhost/models", LocalSource(Path("/models"))),
        ("~/models", LocalSource(Path("~/models").expanduser())),
        ("./~", LocalSource(Path("~"))),
    ],
)
def test_reads(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "hf://",
        "hf://gpt2",
        "hf://a/b/c",
        "hf://org/name@",
        "hf://org/name@a b",
        "hf://org/name@../../etc",
        "hf://org/name@main.lock",
        "hf://-org/name",
        "hf://org/na--me",
        "hf://org/name?x=1",
        "s3://",
        "s3://Bucket/prefix",
        "s3:///prefix",
        "s3://bucket/a\nb",
        "file://models/llama",
        "nul\0path",
    ],
)
def test_refuses_malformed_text_naming_field_and_value(text: str) -> None:
    with pytest.raises(MalformedSourceError) as caught:
        parse_source(text)
    assert caught.value.field == "model.source"
    assert caught.value.value == text
    assert caught.value.remedy


def test_an_address_of_the_hub_is_answered_with_the_source_to_write() -> None:
    with pytest.raises(UnknownSchemeError, match=r"Write hf://Qwen/Qwen2\.5-7B$"):
        parse_source("https://huggingface.co/Qwen/Qwen2.5-7B/tree/main")


def test_other_schemes_are_not_taken_for_paths() -> None:
    with pytest.raises(UnknownSchemeError, match="gs://"):
        parse_source("gs://bucket/model")


@given(_name, _name, _revision)
def test_hub_sources_survive_being_written(org: str, name: str, revision: str) -> None:
    source = HubSource(f"{org}/{name}", revision)
    if not revision.endswith(".lock"):
        assert parse_source(source.uri) == source


@given(_bucket, _key)
def test_s3_sources_survive_being_written(bucket: str, prefix: str) -> None:
    source = S3Source(bucket, prefix.strip("/"))
    assert parse_source(source.uri) == source


@given(st.text(max_size=30).map("hf://org/{}".format) | st.text(max_size=30))
def test_whatever_is_accepted_survives_being_written(text: str) -> None:
    with suppress(InputError):
        source = parse_source(text)
        assert parse_source(source.uri) == source


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30))
def test_local_paths_survive_being_written(name: str) -> None:
    for source in (LocalSource(Path("/models") / name), LocalSource(Path("models") / name)):
        assert parse_source(source.uri) == source
