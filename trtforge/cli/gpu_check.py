"""`trtforge gpu-check`: hold what trtforge believes of TensorRT-LLM against the real thing."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.output import AsJson, err, print_json, say
from trtforge.settings import load_settings

if TYPE_CHECKING:
    from trtforge.gpu_check.report import Check, Report

app = typer.Typer()

_FAILED = 4
_STANDIN = 2


@app.command("gpu-check")
def gpu_check(
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A small Hugging Face model; default: the demo's"),
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="RELEASE", help="TensorRT-LLM that is installed; empty: 1.2.1")
    ] = "",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the report and all that is made go")
    ] = Path("gpu-check"),
    allow_standin: Annotated[
        bool,
        typer.Option("--allow-standin", help="End with 0 against the tests' stand-in too"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build and run one small engine, check every contract on the way, print a report.

    It needs a GPU and TRTFORGE_TRTLLM_PYTHON. The report (report.md, to paste into an issue) has
    versions, times, and what differs from what trtforge expects. Exit code 4 when something does.
    """
    from trtforge.gpu_check.examination import examine
    from trtforge.gpu_check.report import render
    from trtforge.sources.demo_model import make_demo_model

    settings = load_settings()
    out = out.absolute()
    if model is None:
        model = settings.home / "models" / "SmolLM2-135M-Instruct"
        with err.status("making the demo's model (once, about half a minute)"):
            make_demo_model(model, python=settings.toolchain_python)
    work_dir = out / "work"
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    report = examine(
        settings.trtllm_python,
        version,
        model_dir=model.absolute(),
        reference_python=settings.toolchain_python,
        work_dir=work_dir,
        on_check=_show,
    )
    hidden = {str(out): "<out>", str(model.absolute()): "<model>", sys.prefix: "<venv>"}
    text = render(report, hidden)
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.json").write_text(json.dumps(report.to_json(), indent=2), encoding="utf-8")
    if as_json:
        print_json(report.to_json())
    else:
        say(text)
    err.print(f"report: {out / 'report.md'}", soft_wrap=True)
    _end(report, allow_standin)


def _end(report: "Report", allow_standin: bool) -> None:
    if not report.passed:
        raise typer.Exit(_FAILED)
    if report.standin and not allow_standin:
        err.print("STAND-IN: nothing was checked against TensorRT-LLM", style="bold red")
        raise typer.Exit(_STANDIN)


def _show(check: "Check") -> None:
    err.print(f"{check.status:7}  {check.name}  {check.detail}", soft_wrap=True, markup=False)
