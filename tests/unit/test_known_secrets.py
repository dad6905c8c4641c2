"""Secrets of the process: found at the start of a task, and again when something changed."""

import pytest

from trtforge.known_secrets import Known


def hides(known: Known, text: str) -> bool:
    pattern = known.pattern()
    return pattern is not None and bool(pattern.search(text))


def test_a_secret_that_came_later_is_known_from_the_next_task_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = Known()
    assert not hides(known, "the-later-one-of-mine")
    monkeypatch.setenv("MY_TOKEN", "the-later-one-of-mine")
    known.refresh()
    assert hides(known, "the-later-one-of-mine")


def test_what_was_remembered_stays_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    known.add(["remembered-by-a-block"])
    known.refresh()
    assert hides(known, "remembered-by-a-block")
    monkeypatch.setenv("MY_TOKEN", "another-one-of-mine")
    known.refresh()
    assert hides(known, "remembered-by-a-block")
    assert hides(known, "another-one-of-mine")
