"""What every command prints with, and the arguments that several share."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from trtforge.settings import load_settings

if TYPE_CHECKING:
    from trtforge.stages.stage import Workshop

out = Console()
err = Console(stderr=True)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to build")]
EngineId = Annotated[str, typer.Argument(metavar="ENGINE", help="Id, or its first digits")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


def open_workshop() -> "Workshop":
    """The store and the scratch space, as the settings say."""
    from trtforge.stages import workshop

    return workshop.open_workshop(load_settings())


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_card(card: str, location: str) -> None:
    # In a pipe or a file it stays markdown, with nothing cut off.
    if out.is_terminal:
        out.print(Markdown(card))
        say(f"Manifest     {location}")
    else:
        say(card)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table()
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def say(text: str) -> None:
    """Print text as it is: paths and what models write are full of brackets and colons."""
    out.print(Text(text), soft_wrap=True)
