"""`trtforge convert` and `inspect`: TensorRT-LLM checkpoints, without a store or a server."""

import typer

app = typer.Typer()
