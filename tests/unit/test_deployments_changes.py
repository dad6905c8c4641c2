"""What a dry run shows: every leaf that differs, and only these."""

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.changes import differences

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
_DOCUMENTS = st.dictionaries(st.text(min_size=1, max_size=3), _JSON, max_size=4)


@settings(deadline=None)
@given(_DOCUMENTS, _DOCUMENTS)
def test_there_are_differences_exactly_where_documents_differ(
    have: dict[str, object], want: dict[str, object]
) -> None:
    assert (differences(have, want) == ()) == (have == want)


@settings(deadline=None)
@given(_DOCUMENTS)
def test_a_document_does_not_differ_from_itself(document: dict[str, object]) -> None:
    assert differences(document, dict(document)) == ()


def test_a_difference_names_the_leaf_and_both_values() -> None:
    have = {"env": {"A": "1", "B": "2"}, "limit": None}
    want = {"env": {"A": "1", "C": "3"}, "limit": 2}
    assert differences(have, want) == (
        "env.B: '2' → (nothing)",
        "env.C: (nothing) → '3'",
        "limit: None → 2",
    )


def test_long_values_are_cut_and_forms_are_not_spelt_out() -> None:
    [line] = differences({"description": ""}, {"description": "x" * 500})
    assert len(line) < 100
    schemas = ({"parameter_openapi_schema": {"a": 1}}, {"parameter_openapi_schema": {"a": 2}})
    assert differences(*schemas) == (
        "parameter_openapi_schema: the parameters of the flow, or what they take, changed",
    )


def test_a_secret_that_the_server_shows_is_not_shown_again() -> None:
    have = {"env": {"HF_TOKEN": "hf_abcdefghijklmnop", "URL": "https://me:pass-word@host/x"}}
    lines = differences(have, {"env": {}})
    assert len(lines) == 2
    assert "hf_abc" not in str(lines)
    assert "pass-word" not in str(lines)
