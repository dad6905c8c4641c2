"""`trtforge promote`, `rollback`, `history`: which engine a name stands for, and who said so."""

from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.output import AsJson, EngineId, open_workshop, print_json, print_table, say
from trtforge.errors import InputError

if TYPE_CHECKING:
    from trtforge.store import AliasName

app = typer.Typer()

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as prod")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="As `trtforge list` shows it")]
Gpu = Annotated[str | None, typer.Option("--gpu", help="Where the alias exists for several")]
Backend = Annotated[str | None, typer.Option("--backend", help="Where it exists for several")]
By = Annotated[str | None, typer.Option("--by", help="Who does it [default: user@host]")]

_SHOWN_DIGITS = 12


class WrongEngineError(InputError):
    """The engine is for another model, GPU or backend than the alias."""


@app.command()
def promote(engine: EngineId, alias: Alias, by: By = None, as_json: AsJson = False) -> None:
    """Point an alias at an engine, for the engine's model, GPU and backend."""
    from trtforge.stages.publish import alias_name
    from trtforge.store.aliases import who

    store = open_workshop().store
    manifest = store.get_manifest(engine)
    name = alias_name(manifest, alias)
    change = store.set_alias(name, manifest.engine_id, by=by or who())
    _tell(name, manifest.engine_id, change.previous, change.moved, as_json)


@app.command()
def rollback(
    model: Model,
    alias: Alias,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ENGINE", help="Any engine, not the previous one")
    ] = None,
    gpu: Gpu = None,
    backend: Backend = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias back at the engine before. Twice leads back to where it began."""
    from trtforge.stages.publish import alias_name
    from trtforge.store.aliases import who

    store = open_workshop().store
    name = store.aliases.find(model, alias, gpu=gpu, backend=backend)
    target = None
    if to is not None:
        manifest = store.get_manifest(to)
        target = manifest.engine_id
        fits = alias_name(manifest, alias)
        if fits != name:
            raise WrongEngineError(
                f"this engine is {_place(fits)}; the alias is {_place(name)}",
                field="to",
                value=to,
                remedy="Name an engine of the same model, GPU and backend",
            )
    done = store.aliases.roll_back(name, by=by or who(), to=target)
    _tell(name, done.engine_id, done.previous, done.moved, as_json)


@app.command()
def history(
    model: Model, alias: Alias, gpu: Gpu = None, backend: Backend = None, as_json: AsJson = False
) -> None:
    """Show the moves of an alias, the newest first."""
    store = open_workshop().store
    name = store.aliases.find(model, alias, gpu=gpu, backend=backend)
    record = store.get_alias(name)
    moves = list(reversed(record.history)) if record else []
    if as_json:
        print_json([move.model_dump(mode="json", exclude={"id"}) for move in moves])
        return
    say(f"{name.alias} {_place(name)}")
    rows = [
        (
            move.at.isoformat(timespec="seconds")[:16].replace("T", " "),
            move.engine_id[:_SHOWN_DIGITS],
            move.previous[:_SHOWN_DIGITS] if move.previous else "",
            move.by,
        )
        for move in moves
    ]
    print_table(("Moved (UTC)", "Engine", "Before", "By"), rows)


def _tell(
    name: "AliasName", engine_id: str, previous: str | None, moved: bool, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "model": name.model,
                "gpu": name.gpu,
                "backend": name.backend,
                "alias": name.alias,
                "engine_id": engine_id,
                "previous": previous,
                "moved": moved,
            }
        )
        return
    shown = engine_id[:_SHOWN_DIGITS]
    if not moved:
        say(f"{name.alias} {_place(name)} points at {shown} already")
        return
    before = f"; before, at {previous[:_SHOWN_DIGITS]}" if previous else ""
    say(f"{name.alias} {_place(name)} now points at {shown}{before}")


def _place(name: "AliasName") -> str:
    return f"of {name.model} for {name.gpu} with {name.backend}"
