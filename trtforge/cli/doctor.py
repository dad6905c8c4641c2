"""`trtforge doctor`: what this machine can build with, and what is missing."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trtforge.cli.output import AsJson, err, out, print_json, say
from trtforge.settings import load_settings

if TYPE_CHECKING:
    from trtforge.doctor import Report

app = typer.Typer()
_CANNOT_BUILD = 2
_MARKS = {
    "ok": ("+", "green"),
    "warning": ("!", "yellow"),
    "missing": ("x", "red"),
    "not checked": ("?", "dim"),
}
_TITLES = {
    "machine": "This machine",
    "gpu": "GPU",
    "container": "Containers",
    "aoti": "Backend aoti (PyTorch AOTInductor)",
    "trtllm": "Backend trtllm (TensorRT-LLM)",
    "services": "Services",
}


@app.command()
def doctor(
    backend: Annotated[
        str | None, typer.Option(help="aoti or trtllm: the exit code is about that one")
    ] = None,
    container: Annotated[
        bool,
        typer.Option("--container", help="Also start TensorRT-LLM's image, if it is here"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can build with, what is missing, and how to get it.

    Exit code 0 when a backend (or the one of --backend) can compile here, 2 when none can.
    Storage and Prefect server are reported and do not change it: a build needs them, but they may
    be elsewhere or not started yet.
    """
    from trtforge.doctor import examine

    if backend not in (None, "aoti", "trtllm"):
        raise typer.BadParameter("use aoti or trtllm", param_hint="--backend")
    with err.status("looking"):
        report = examine(load_settings(), probe_container=container)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if not report.can_build(backend):
        raise typer.Exit(_CANNOT_BUILD)


def print_report(report: "Report") -> None:
    """One line a finding, and below it what to do."""
    area = ""
    for finding in report.findings:
        if finding.area != area:
            area = finding.area
            out.print(Text(_TITLES[area], "bold"))
        mark, style = _MARKS[finding.status]
        line = Text.assemble(
            (f"  {mark} ", style),
            f"{finding.name}: ",
            (f"{finding.status}; " if finding.status != "ok" else "", style),
            finding.detail,
        )
        out.print(line, soft_wrap=True)
        if finding.remedy:
            say(f"      {finding.remedy}")
    can = [name for name, usable in report.backends.items() if usable]
    cannot = [name for name, usable in report.backends.items() if not usable]
    say("")
    if can:
        say(f"Engines can be compiled here with {' and '.join(can)}.")
    if cannot:
        say(f"Not with {' or '.join(cannot)}: see what is marked x above.")
