"""`trtforge list`, `show`, `resolve`, `fetch`, `generate`: published engines, and their use."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from trtforge.cli.listing import Filters, engine_json, print_engines
from trtforge.cli.output import AsJson, EngineId, open_workshop, out, print_card, print_json, say
from trtforge.cli.resolve import resolve

app = typer.Typer()
_SHOWN = 30


app.command()(resolve)


@app.command("list")
def list_engines(
    model: Annotated[str | None, typer.Option(help="Part of its name, or its source")] = None,
    gpu: Annotated[str | None, typer.Option(help="Part of the GPU's name, or cpu")] = None,
    backend: Annotated[str | None, typer.Option(help="Such as aoti")] = None,
    alias: Annotated[str | None, typer.Option(help="Only engines it points at")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"Engines at most; 0: all; {_SHOWN} without --json", metavar="N"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the published engines, newest first."""
    from trtforge.store.gates import GateRecords
    from trtforge.store.resolve import aliases_by_engine

    store = open_workshop().store
    pointing = aliases_by_engine(store.list_aliases())
    filters = Filters(model, gpu, backend, alias)
    everything = [(m, pointing.get(m.engine_id, ())) for m in store.list_manifests()]
    matching = [(m, aliases) for m, aliases in everything if filters.match(m, aliases)]
    at_most = limit if limit is not None else 0 if as_json else _SHOWN
    shown = matching[:at_most] if at_most else matching
    gates = GateRecords(store.bucket).states(manifest for manifest, _ in shown)
    if as_json:
        print_json([engine_json(m, aliases, gates[m.engine_id]) for m, aliases in shown])
        return
    if shown:
        failed = {engine_id for engine_id, state in gates.items() if state.blocks}
        print_engines(out, shown, datetime.now(UTC), failed)
    say(_closing_line(len(shown), len(matching), len(everything)))


@app.command()
def show(engine: EngineId, as_json: AsJson = False) -> None:
    """Show one engine's card."""
    from trtforge.card import engine_card
    from trtforge.store.gates import GateRecords

    store = open_workshop().store
    manifest = store.get_manifest(engine)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    aliases = [n.alias for n, r in store.list_aliases() if r.engine_id == manifest.engine_id]
    location = store.manifest_uri(manifest.engine_id)
    gates = GateRecords(store.bucket).state(manifest)
    card = engine_card(manifest, location=location, aliases=aliases, gates=gates.describe())
    print_card(card, location)


@app.command()
def fetch(
    engine: EngineId,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty directory")],
    as_json: AsJson = False,
) -> None:
    """Download a published engine, verified, into an empty directory."""
    store = open_workshop().store
    manifest = store.get_manifest(engine)
    store.materialise(manifest.core.files, directory, use_cache=False)
    size_bytes = sum(f.size_bytes for f in manifest.core.files)
    if as_json:
        print_json({"engine_id": manifest.engine_id, "directory": str(directory)})
        return
    count = len(manifest.core.files)
    say(f"{count} files, {size_bytes / 1e6:.1f} MB, verified, in {directory}")


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
        open_workshop(),
        engine,
        prompt,
        max_output_len,
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed},
    )
    if as_json:
        print_json(answer)
    else:
        say(str(answer["text"]))


def _closing_line(shown: int, matching: int, published: int) -> str:
    if published == 0:
        return "No engine is published yet."
    line = f"{shown} of {published} shown"
    return f"{line}; {matching} match, --limit 0 shows them all" if shown < matching else line
