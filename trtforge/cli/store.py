"""`trtforge store …`: the bucket itself, for whoever looks after it."""

import typer

app = typer.Typer(name="store", help="Look after the bucket.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look after the bucket."""
