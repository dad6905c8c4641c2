"""What README and docs tell people to type exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from trtforge.cli import app
from trtforge.spec import parse_spec

yaml = pytest.importorskip("yaml")

_ROOT = Path(__file__).parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_COMMAND = typer.main.get_command(app)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def _typed(program: str) -> list[tuple[str, list[str]]]:
    found = []
    for page in _PAGES:
        for block in _blocks(page, "sh"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == program:
                    found.append((f"{page.name}: {line}", words[1:]))
    return found


@pytest.mark.parametrize(("where", "words"), _typed("trtforge"))
def test_commands_and_their_options_exist(where: str, words: list[str]) -> None:
    command = _COMMAND
    for word in words:
        if not hasattr(command, "commands"):
            break
        command = command.commands[word]
    options = {name for parameter in command.params for name in parameter.opts}
    assert [w for w in words if w.startswith("--") and w not in options] == [], where


@pytest.mark.parametrize(("where", "words"), _typed("make"))
def test_make_targets_exist(where: str, words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    assert [w for w in words if "=" not in w and w not in targets] == [], where


def test_specs_shown_are_valid() -> None:
    shown = [block for page in _PAGES for block in _blocks(page, "yaml")]
    shown += [path.read_text() for path in sorted((_ROOT / "examples").glob("*.yaml"))]
    assert len(shown) >= 2
    for text in shown:
        parse_spec(yaml.safe_load(text))


def test_there_is_something_to_check() -> None:
    assert _typed("trtforge")
    assert _typed("make")
