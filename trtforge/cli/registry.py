"""`trtforge promote`, `rollback`, `history`: which engine a name stands for, and who said so."""

import typer

app = typer.Typer()
