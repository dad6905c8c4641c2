"""`trtforge bench`, `bench report` and `compare`: how quick published engines are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markdown import Markdown

from trtforge.cli.output import AsJson, EngineId, err, open_workshop, out, print_json, say
from trtforge.display import BuildDisplay
from trtforge.errors import InputError
from trtforge.progress import Announced

if TYPE_CHECKING:
    from trtforge.benchmark.report import BenchmarkReport
    from trtforge.benchmark.sample import Sample
    from trtforge.stages.stage import Workshop

app = typer.Typer()

_Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the page there, too")
]


class WorkloadOptionError(InputError):
    """The options of `trtforge bench` do not name a workload."""


@app.command()
def bench(
    engine: Annotated[
        str, typer.Argument(metavar="ENGINE|report", help="Id, or its first digits; or `report`")
    ],
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|ENGINE]", help="After `report`: of what to report again"),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="smoke, chat, summary, standard, or tokens in/out such as 512/64"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='JSONL of your own prompts: {"prompt": …}; needs --output-tokens'),
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(min=2, help="With --prompts")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Such as 1,2,8 [default: the engine's spec]")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Runs over all concurrencies")] = None,
    requests: Annotated[
        int | None, typer.Option(min=0, help="At each concurrency, in each repeat; p99 needs 100")
    ] = None,
    in_turns: Annotated[
        bool, typer.Option("--in-turns", help="Engine and eager by turns, loaded anew each time")
    ] = False,
    eager: Annotated[
        bool, typer.Option("--eager/--no-eager", help="Measure eager PyTorch beside it")
    ] = True,
    ttft_ms: Annotated[float, typer.Option(min=0, help="SLO for goodput")] = 0.0,
    itl_ms: Annotated[float, typer.Option(min=0, help="SLO for goodput")] = 0.0,
    hourly_price: Annotated[float, typer.Option(min=0, help="For the cost of tokens")] = 0.0,
    html: _Html = None,
    as_json: AsJson = False,
) -> None:
    """Measure a published engine here; or, with `report`, compute a report from raw data again."""
    if engine == "report":
        if run is None:
            raise WorkloadOptionError(
                "what to report on is missing", remedy="Give a run or an engine: bench report RUN"
            )
        _report(run, html, as_json)
        return
    from trtforge.stages.bench import bench as measure

    changes: dict[str, Any] = {
        "workload": _workload(workload, prompts, output_tokens),
        "concurrency": _concurrencies(concurrency),
        "repeats": repeats,
        "requests": requests,
        "in_turns": in_turns or None,
        "slo": {"ttft_ms": ttft_ms, "itl_ms": itl_ms} if ttft_ms or itl_ms else None,
        "hourly_price": hourly_price or None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    shop = open_workshop()
    with BuildDisplay(err), Announced("bench") as step:
        done = measure(shop, engine, changes, eager=eager, on_progress=step.on_progress)
        step.message = f"engine {done.manifest.engine_id[:12]}, {done.report.workload['label']}"
    if html:
        data = shop.store.get_run_file(done.record.run_id, "report.html")
        html.write_bytes(data or b"")
    if as_json:
        print_json(
            {
                "engine_id": done.manifest.engine_id,
                "run": done.record.run_id,
                "location": done.location,
                "workload": done.report.workload,
                "load_s": done.report.load_s,
                "limits": done.report.limits,
                "summary": done.summary.to_json(),
            }
        )
        return
    _print(done.markdown)
    say("")
    say(f"Run          {done.record.run_id}")
    say(f"Kept at      {done.location}")
    if html:
        say(f"Page         {html}")
    else:
        say(f"Page         trtforge bench report {done.record.run_id} --html page.html")


@app.command()
def compare(
    first: EngineId,
    second: Annotated[str, typer.Argument(metavar="ENGINE", help="Held against the first")],
    as_json: AsJson = False,
) -> None:
    """Compare two engines by the raw data they were published with, or last measured with."""
    from trtforge.stages.bench_compare import compare_published

    told = compare_published(open_workshop(), first, second)
    if as_json:
        print_json(told.to_json())
        return
    _print(told.markdown())


def _report(name: str, html: Path | None, as_json: bool) -> None:
    """Compute the summary from the raw data again, and say whether it is what was kept."""
    from trtforge.benchmark import page
    from trtforge.stages.bench_report import manifest_rows, page_title

    shop = open_workshop()
    report, samples, manifest = _find(shop, name)
    summary, same = report.again(samples)
    if manifest is not None:
        title, card = page_title(manifest), manifest_rows(manifest)
    else:
        title, card = name, [("Run", name)]
    if html:
        text = page.render(report, samples, title=title, card=card)
        html.write_text(text, encoding="utf-8")
    if as_json:
        print_json({**summary.to_json(), "same_as_kept": same, "requests": len(samples)})
        return
    _print(page.markdown(report, summary, title=title))
    if not report.summary:
        say(f"Computed from {len(samples)} requests; this benchmark kept no summary.")
    elif same:
        say(f"Computed again from {len(samples)} requests: the same as the summary that was kept.")
    else:
        say(f"Computed again from {len(samples)} requests: NOT the same as the summary kept.")
    if html:
        say(f"Page         {html}")


def _find(shop: "Workshop", name: str) -> "tuple[BenchmarkReport, list[Sample], Any]":
    from trtforge.stages.bench_report import engine_of_run, read_engine, read_run

    found = read_run(shop, name)
    if found is not None:
        return (*found, engine_of_run(shop, name))
    manifest = shop.store.get_manifest(name)
    return (*read_engine(shop, manifest), manifest)


def _workload(
    name: str | None, prompts: Path | None, output_tokens: int | None
) -> dict[str, Any] | None:
    if prompts is not None:
        if name is not None or output_tokens is None:
            raise WorkloadOptionError(
                "prompts of your own have their lengths, and need the answers' told",
                field="--prompts",
                value=str(prompts),
                remedy="Use --prompts FILE --output-tokens N, without --workload",
            )
        return {"prompts_file": str(prompts.resolve()), "output_tokens": output_tokens}
    if name is None:
        return None
    tokens_in, slash, tokens_out = name.partition("/")
    if not slash:
        return {"name": name}
    if not (tokens_in.isdecimal() and tokens_out.isdecimal()):
        raise WorkloadOptionError(
            "these are not two numbers of tokens",
            field="--workload",
            value=name,
            remedy="Write tokens in and out, such as 512/64",
        )
    return {"input_tokens": int(tokens_in), "output_tokens": int(tokens_out)}


def _concurrencies(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise WorkloadOptionError(
            "these are not whole numbers", field="--concurrency", value=text, remedy="Write 1,2,8"
        )
    return [int(part) for part in parts]


def _print(markdown: str) -> None:
    # In a pipe or a file it stays markdown, with nothing cut off.
    if out.is_terminal:
        out.print(Markdown(markdown))
    else:
        say(markdown)
