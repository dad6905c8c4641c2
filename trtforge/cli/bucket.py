"""What the commands that look after the bucket share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtforge.cli.output import err
from trtforge.progress import OnProgress, Progress
from trtforge.settings import load_settings

if TYPE_CHECKING:
    from trtforge.store import Store

By = Annotated[str | None, typer.Option("--by", help="Who does it [default: user@host]")]
SHOWN_DIGITS = 12


def open_store() -> "Store":
    """The store, as the settings say."""
    from trtforge.store.connect import store_of

    return store_of(load_settings())


@contextmanager
def bytes_bar() -> Iterator[OnProgress]:
    """A bar on a terminal, on stderr; nothing in a pipe."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Bars(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def on_progress(progress: Progress) -> None:
            if progress.unit == "bytes":
                bars.update(
                    task,
                    description=progress.what,
                    completed=progress.done,
                    total=progress.total,
                )

        yield on_progress
