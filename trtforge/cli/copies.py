"""`trtforge store export`, `import`, `mirror`: engines on their way to other places."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.bucket import SHOWN_DIGITS, By, bytes_bar, open_store
from trtforge.cli.output import AsJson, EngineId, print_json, print_table, say
from trtforge.errors import InputError
from trtforge.settings import load_settings
from trtforge.units import size

if TYPE_CHECKING:
    from trtforge.store import AliasName, Manifest, Store


class AliasNowhereError(InputError):
    """No model has an alias of this name."""


def export_engine(
    engine: EngineId,
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar", dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Write an engine into a tar file, to carry it to where the bucket cannot be reached from."""
    from trtforge.store import archive as archives

    store = open_store()
    manifest = store.get_manifest(engine)
    with bytes_bar() as on_progress:
        size_bytes = archives.export_engine(store, manifest, archive, on_progress)
    if as_json:
        told = {"engine_id": manifest.engine_id, "archive": str(archive), "size_bytes": size_bytes}
        print_json(told)
    else:
        say(f"{manifest.engine_id[:SHOWN_DIGITS]}, {size(size_bytes)}, verified, in {archive}")


def import_engine(
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar", exists=True, dir_okay=False)],
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="Point it there too; may be repeated")
    ] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Publish the engine of an archive that `store export` wrote."""
    from trtforge.stages.publish import alias_name
    from trtforge.store import archive as archives
    from trtforge.store.aliases import who

    store = open_store()
    with bytes_bar() as on_progress:
        manifest = archives.import_engine(store, archive, on_progress)
    for one in alias or ():
        store.set_alias(alias_name(manifest, one), manifest.engine_id, by=by or who())
    if as_json:
        print_json({"engine_id": manifest.engine_id, "aliases": alias or []})
        return
    shown, model = manifest.engine_id[:SHOWN_DIGITS], manifest.core.model.name
    say(f"{shown} of {model}, verified, is published" + "".join(f", {one}" for one in alias or ()))


def mirror(
    to_bucket: Annotated[str, typer.Option("--to-bucket", help="The second bucket")],
    engines: Annotated[
        list[str] | None,
        typer.Argument(metavar="ENGINE", help="These; all engines, if none is named"),
    ] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", help="What this alias points at; it is set there too")
    ] = None,
    to_endpoint: Annotated[str | None, typer.Option(help="Of another service")] = None,
    to_region: Annotated[str | None, typer.Option(help="Of another service")] = None,
    to_profile: Annotated[
        str | None, typer.Option(help="Section of the AWS configuration files with its keys")
    ] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Copy engines to a second bucket; only what is missing there."""
    from trtforge.store.aliases import who
    from trtforge.store.connect import Elsewhere, store_elsewhere
    from trtforge.store.mirror import mirror_engine

    store = open_store()
    elsewhere = Elsewhere(to_endpoint, to_region, to_profile)
    dest = store_elsewhere(load_settings(), to_bucket, elsewhere)
    mirrored = []
    with bytes_bar() as on_progress:
        for manifest, aliases in _chosen(store, engines or [], alias):
            done = mirror_engine(
                store, dest, manifest, aliases, by=by or who(), on_progress=on_progress
            )
            mirrored.append(done)
    if as_json:
        print_json([asdict(done) for done in mirrored])
        return
    rows = [
        (
            done.engine_id[:SHOWN_DIGITS],
            "copied" if done.published else "was there",
            size(done.copied_bytes),
            ", ".join(name.alias for name in done.aliases),
        )
        for done in mirrored
    ]
    print_table(("Engine", dest.bucket.name, "Sent", "Aliases moved"), rows)


def _chosen(
    store: "Store", engines: list[str], alias: str | None
) -> list[tuple["Manifest", list["AliasName"]]]:
    """The engines to mirror, and the aliases to set with each."""
    if not engines and alias is None:
        return [(manifest, []) for manifest in store.list_manifests()]
    chosen: dict[str, list[AliasName]] = {
        store.get_manifest(engine).engine_id: [] for engine in engines
    }
    if alias is not None:
        named = [(n, r.engine_id) for n, r in store.list_aliases() if n.alias == alias]
        if not named:
            raise AliasNowhereError(
                "no model has such an alias",
                field="alias",
                value=alias,
                remedy="`trtforge list` shows the aliases",
            )
        for name, engine_id in named:
            if not engines or engine_id in chosen:
                chosen.setdefault(engine_id, []).append(name)
    return [(store.get_manifest(engine_id), names) for engine_id, names in chosen.items()]
