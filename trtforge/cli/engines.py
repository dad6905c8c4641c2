"""`trtforge list`, `show`, `fetch`, `generate`: published engines, and their use."""

from pathlib import Path
from typing import Annotated

import typer

from trtforge.cli.output import (
    AsJson,
    EngineId,
    open_workshop,
    print_card,
    print_json,
    print_table,
    say,
)

app = typer.Typer()


@app.command("list")
def list_engines(as_json: AsJson = False) -> None:
    """List the published engines, newest first."""
    store = open_workshop().store
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
        print_json(engines)
        return
    rows = []
    for engine in engines:
        aliases = ", ".join(pointing.get(str(engine["engine_id"]), []))
        cells = [str(engine[k]) for k in ("model", "backend", "valid_on")]
        published = str(engine["created_at"])[:16].replace("T", " ")
        rows.append((str(engine["engine_id"])[:12], *cells, aliases, published))
    print_table(("Engine", "Model", "Backend", "Valid on", "Aliases", "Published (UTC)"), rows)


@app.command()
def show(engine: EngineId, as_json: AsJson = False) -> None:
    """Show one engine's card."""
    from trtforge.card import engine_card

    store = open_workshop().store
    manifest = store.get_manifest(engine)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    aliases = [n.alias for n, r in store.list_aliases() if r.engine_id == manifest.engine_id]
    location = store.manifest_uri(manifest.engine_id)
    print_card(engine_card(manifest, location=location, aliases=aliases), location)


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
