import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.canonical import canonical_json, digest, sha256_file
from trtforge.progress import Progress

text = st.text(st.characters(codec="utf-8"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
values = st.recursive(
    scalars.filter(lambda v: v not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    """The same data with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(v) for v in value] if isinstance(value, list) else value


class TestCanonicalJson:
    @given(values)
    def test_the_order_of_keys_does_not_matter(self, value: Any) -> None:
        assert canonical_json(reordered(value)) == canonical_json(value)
        assert digest(reordered(value)) == digest(value)

    @given(values)
    def test_it_is_json_in_utf_8_and_keeps_the_value(self, value: Any) -> None:
        assert json.loads(canonical_json(value).decode()) == value

    @given(st.lists(values, min_size=2, max_size=2, unique_by=repr))
    def test_different_values_have_different_digests(self, pair: list[Any]) -> None:
        one, other = (canonical_json(v) for v in pair)
        assert (one == other) == (digest(pair[0]) == digest(pair[1]))

    def test_it_has_no_white_space_and_sorted_keys(self) -> None:
        assert canonical_json({"b": [1, 2.5, None], "a": {"y": True, "x": "z"}}) == (
            b'{"a":{"x":"z","y":true},"b":[1,2.5,null]}'
        )

    def test_text_is_not_escaped(self) -> None:
        assert canonical_json({"ä": "日本 🙂"}) == '{"ä":"日本 🙂"}'.encode()

    def test_a_tuple_is_a_list(self) -> None:
        assert canonical_json((1, 2)) == canonical_json([1, 2])

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    def test_numbers_that_json_does_not_have_are_refused(self, number: float) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"deep": [number]})

    def test_half_a_character_is_refused(self) -> None:
        with pytest.raises(ValueError, match="surrogates not allowed"):
            canonical_json("\ud800")

    def test_what_is_not_json_data_is_refused(self) -> None:
        with pytest.raises(TypeError):
            canonical_json({"path": Path("x")})


def test_the_digest_of_a_known_value_never_changes() -> None:
    # Keys in stores out there are made of it.
    assert digest({"stage": "pull", "inputs": ["ä", 1]}) == (
        "74cac460a851e3d7d65536b31af6c6633b29ebb771fadf8a9c81e7778d2f7107"
    )


class TestSha256File:
    @pytest.mark.parametrize("size", [0, 1, 4 << 20, (4 << 20) + 1])
    def test_it_hashes_every_byte(self, tmp_path: Path, size: int) -> None:
        data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        path = tmp_path / "file"
        path.write_bytes(data)
        assert sha256_file(path) == hashlib.sha256(data).hexdigest()

    def test_it_tells_the_bytes_done(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes((4 << 20) + 10))
        told: list[Progress] = []
        sha256_file(path, told.append)
        assert [(p.done, p.total, p.unit) for p in told] == [
            (4 << 20, (4 << 20) + 10, "bytes"),
            ((4 << 20) + 10, (4 << 20) + 10, "bytes"),
        ]
