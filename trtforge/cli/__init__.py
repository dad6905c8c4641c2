"""The command `trtforge`: one module per group of commands.

Exit codes: 0 done; 1 an unexpected error; 2 the spec, the model or an argument is wrong; 3 a
service (storage, Prefect, the Hub) failed; 4 a stage could not produce what it promises; 5 a gate
was not passed; 130 interrupted.
"""

import sys

import typer
from rich.text import Text

from trtforge.cli import (
    bench,
    build,
    catalog,
    checkpoint,
    deploy,
    doctor,
    engines,
    gate,
    gpu_check,
    image,
    memory,
    registry,
    services,
    store,
)
from trtforge.cli.output import err
from trtforge.errors import TrtforgeError

app = typer.Typer(
    help="Turn a Hugging Face model into a verified, benchmarked, published engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _group in (
    services,
    build,
    bench,
    engines,
    registry,
    store,
    checkpoint,
    deploy,
    catalog,
    memory,
    doctor,
    image,
    gate,
    gpu_check,
):
    app.add_typer(_group.app)
_INTERRUPTED = 130


def main() -> None:
    """Run the command; errors of trtforge are one line on stderr and an exit code."""
    try:
        app()
    except TrtforgeError as error:
        line = " ".join(str(error).splitlines())
        err.print(Text.assemble(("error:", "bold red"), f" {line}"), soft_wrap=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer has caught the KeyboardInterrupt, unless the command told of it itself.
        if end.code == _INTERRUPTED and type(end) is SystemExit:
            err.print("interrupted; finished stages are kept")
        raise
