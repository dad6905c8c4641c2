"""`trtforge convert` and `inspect`: TensorRT-LLM checkpoints, without a store or a server."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from trtforge.cli.output import AsJson, err, print_json, print_table, say
from trtforge.progress import OnProgress, Progress, ignore

if TYPE_CHECKING:
    from trtforge.checkpoint import ConversionPlan
    from trtforge.checkpoint.inspect import CheckpointReport
    from trtforge.files import FileRef

app = typer.Typer()

_UNSOUND = 2
_INTERRUPTED = 130


class InterruptedConversion(SystemExit):
    """Ctrl-C, after what was half-made is gone."""


@app.command()
def convert(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Hugging Face model")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty directory")],
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks")] = 1,
    pp: Annotated[int, typer.Option(help="Pipeline-parallel ranks")] = 1,
    target: Annotated[
        str, typer.Option(metavar="RELEASE", help="TensorRT-LLM 1.2, 1.1, 1.0 or 0.16")
    ] = "1.2",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16")] = "bfloat16",
    use_parallel_embedding: Annotated[
        bool, typer.Option("--use-parallel-embedding", help="Split the input embedding too")
    ] = False,
    embedding_sharding_dim: Annotated[
        int, typer.Option(metavar="0|1", help="Split its vocabulary (0) or hidden dimension (1)")
    ] = 0,
    plan: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Check and show sizes; write nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a Hugging Face model to a TensorRT-LLM checkpoint."""
    from trtforge import checkpoint
    from trtforge.checkpoint.target import Target

    wanted = Target(
        version=target,
        dtype=dtype,
        tp=tp,
        pp=pp,
        use_parallel_embedding=use_parallel_embedding,
        embedding_sharding_dim=embedding_sharding_dim,
    )
    planned = checkpoint.preflight(model_dir, wanted)
    if plan:
        _show_plan(planned, as_json)
        return
    started = time.monotonic()
    try:
        with _bar(planned.output_bytes) as on_progress:
            files = checkpoint.convert(model_dir, out, wanted, on_progress=on_progress)
    except KeyboardInterrupt:
        err.print("interrupted; nothing is left behind")
        raise InterruptedConversion(_INTERRUPTED) from None
    _show_result(planned, out, files, time.monotonic() - started, as_json)


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="CKPT", help="TensorRT-LLM checkpoint")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors too")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint holds. Exit code 2, and a list of problems, when it is not sound."""
    from trtforge.checkpoint.inspect import inspect_checkpoint

    report = inspect_checkpoint(directory)
    if as_json:
        print_json(report.to_json(tensors=tensors))
    else:
        _show_report(report, tensors)
    if report.problems:
        raise typer.Exit(_UNSOUND)


def _show_plan(planned: "ConversionPlan", as_json: bool) -> None:
    ranks = [
        {"file": rank.name, "size_bytes": rank.size_bytes, "tensors": len(rank.tensors)}
        for rank in planned.ranks
    ]
    if as_json:
        print_json(
            {
                "ranks": ranks,
                "output_bytes": planned.output_bytes,
                "notes": list(planned.notes),
                "config": dict(planned.config),
            }
        )
        return
    rows = [(rank.name, str(len(rank.tensors)), decimal(rank.size_bytes)) for rank in planned.ranks]
    print_table(("File", "Tensors", "Size"), rows)
    _say_notes(planned.notes)
    say(
        f"{_counted(len(ranks), 'rank file')}, {decimal(planned.output_bytes)}; nothing was written"
    )


def _show_result(
    planned: "ConversionPlan",
    out: Path,
    files: "Sequence[FileRef]",
    seconds: float,
    as_json: bool,
) -> None:
    size_bytes = sum(file.size_bytes for file in files)
    if as_json:
        print_json(
            {
                "directory": str(out),
                "files": [file.to_json() for file in files],
                "size_bytes": size_bytes,
                "notes": list(planned.notes),
                "seconds": seconds,
            }
        )
        return
    _say_notes(planned.notes)
    say(
        f"{_counted(len(planned.ranks), 'rank file')}, {decimal(size_bytes)} in {seconds:.1f} s, "
        f"{size_bytes / 1e6 / seconds:.0f} MB/s, in {out}"
    )


def _show_report(report: "CheckpointReport", tensors: bool) -> None:
    release = {"any": "any release", "unknown": "an unknown release"}.get(
        report.release, report.release
    )
    say(f"{report.architecture}, {report.dtype}{_quantised(report)}, for TensorRT-LLM {release}")
    context = f" × cp {report.cp}" if report.cp > 1 else ""
    say(f"tp {report.tp} × pp {report.pp}{context}, {report.layers} layers")
    rows = [
        (rank.file, str(rank.layers), str(len(rank.tensors)), decimal(rank.file_bytes))
        for rank in report.ranks
    ]
    print_table(("File", "Layers", "Tensors", "Size"), rows)
    if tensors:
        print_table(("Tensor", "Type", "Shape", "Ranks"), _tensor_rows(report))
    found = f"{_counted(len(report.ranks), 'rank file')}, {decimal(report.size_bytes)}"
    if report.problems:
        say(f"{found}: not sound")
        for problem in report.problems:
            say(f"  - {problem}")
    else:
        checks = "names, shapes and types agree" if report.checked else "tensors were not checked"
        say(f"{found}: sound; {checks}{' with config.json' if report.checked else ''}")


def _quantised(report: "CheckpointReport") -> str:
    return f", quantised ({report.quantised})" if report.quantised else ""


def _tensor_rows(report: "CheckpointReport") -> Iterator[tuple[str, str, str, str]]:
    """One row for each name, type and shape, with the ranks that hold such a tensor."""
    ranks: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for rank in report.ranks:
        for tensor in rank.tensors:
            ranks.setdefault((tensor.name, tensor.dtype, tensor.shape), []).append(rank.rank)
    for (name, dtype, shape), holders in sorted(ranks.items(), key=lambda row: _natural(row[0][0])):
        size = " × ".join(map(str, shape)) or "scalar"
        yield name, dtype, size, _ranges(holders)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Layer 2 comes before layer 10."""
    return [
        (0, int(part), "") if part.isdecimal() and len(part) < 10 else (1, 0, part)
        for part in name.split(".")
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 4` for 0, 1, 2, 4."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"Note: {note}")


@contextmanager
def _bar(total_bytes: int) -> Iterator[OnProgress]:
    """A bar on stderr while the block runs, where that is a terminal."""
    if not err.is_terminal:
        yield ignore
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (
        BarColumn(bar_width=32),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Bars(*columns, console=err, transient=True) as bars:
        bar = bars.add_task("", total=total_bytes)

        def on_progress(progress: Progress) -> None:
            bars.update(bar, completed=progress.done, description=progress.what)

        yield on_progress
