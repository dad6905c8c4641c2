"""`trtforge resolve`, `promote`, `rollback`, `history`: the right engine, and who said so."""

import typer

app = typer.Typer()
