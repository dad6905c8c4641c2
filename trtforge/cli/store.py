"""`trtforge store …`: the bucket itself, for whoever looks after it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.bucket import SHOWN_DIGITS, By, bytes_bar, open_store
from trtforge.cli.copies import export_engine, import_engine, mirror
from trtforge.cli.output import AsJson, EngineId, print_json, print_table, say
from trtforge.errors import ServiceError
from trtforge.settings import load_settings
from trtforge.units import size

if TYPE_CHECKING:
    from trtforge.store.gc import Garbage
    from trtforge.store.verify import Copies, Verification

app = typer.Typer(name="store", help="Look after the bucket.", no_args_is_help=True)

_SHOWN_ENGINES = 3


class StoreDamagedError(ServiceError):
    """The store does not hold what was put into it."""


class NotSafeError(ServiceError):
    """The service cannot be used as a store."""


@app.callback()
def _group() -> None:
    """Look after the bucket."""


app.command("export")(export_engine)
app.command("import")(import_engine)
app.command()(mirror)


@app.command()
def init(
    create: Annotated[bool, typer.Option("--create", help="Make the bucket if need be")] = False,
    days: Annotated[
        int, typer.Option(min=1, help="Age at which the service aborts incomplete uploads")
    ] = 7,
    as_json: AsJson = False,
) -> None:
    """Make the bucket ready, and say what the service can do. Again changes nothing."""
    from trtforge.store.connect import client_of
    from trtforge.store.init import init_bucket

    settings = load_settings()
    state = init_bucket(client_of(settings), settings.require_bucket(), create=create, days=days)
    if as_json:
        print_json(asdict(state))
    else:
        say(f"Bucket              {state.bucket} {'created' if state.created else 'was there'}")
        say(f"Incomplete uploads  rule {state.lifecycle} (aborted after {days} days)")
        say(f"Conditional writes  {state.conditional_writes or 'honoured'}")
        say(f"Encryption          {settings.s3_encryption or 'as the bucket says'}")
    if state.conditional_writes:
        raise NotSafeError(
            state.conditional_writes,
            field="endpoint_url",
            value=state.endpoint_url,
            remedy="Use AWS S3, MinIO, SeaweedFS, Cloudflare R2 or a recent Ceph",
        )


@app.command()
def verify(
    engine: Annotated[
        str | None, typer.Argument(metavar="ENGINE", help="One engine; all, if left out")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend from copies in the local cache")
    ] = False,
    copies_dir: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DIR", exists=True, file_okay=False, help="Mend from files there"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of an engine, or of the whole store, and compare it with its digest."""
    from trtforge.store.verify import (
        cached_copies,
        copies_below,
        either,
        verify_engine,
        verify_store,
    )

    store = open_store()
    copies: Copies | None = cached_copies(store) if repair else None
    if copies_dir:
        below = copies_below(copies_dir)
        copies = either(copies, below) if copies else below
    with bytes_bar() as on_progress:
        if engine:
            found = verify_engine(store, store.get_manifest(engine), copies, on_progress)
        else:
            found = verify_store(store, copies, on_progress)
    if as_json:
        print_json({**asdict(found), "whole": not found.remaining})
    else:
        _show(found)
    if found.remaining:
        first = found.remaining[0]
        raise StoreDamagedError(
            f"{len(found.remaining)} objects are damaged or missing",
            field="object",
            value=store.bucket.uri(first.key),
            remedy="Mend them from copies with `trtforge store verify --repair` or `--from DIR`, "
            "or build the engines again",
        )


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Do it; else only say")] = False,
    keep_days: Annotated[
        float, typer.Option(min=0, help="Engines and stage results younger than this stay")
    ] = 30,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="Nothing younger than this is touched")
    ] = 24,
    uploads_days: Annotated[
        float, typer.Option(min=0, help="Multipart uploads begun before this are aborted")
    ] = 7,
    as_json: AsJson = False,
) -> None:
    """Say what nothing needs any more, and with --delete free its space."""
    from trtforge.store.gc import DAY_S, Rules, delete_garbage, find_garbage

    bucket = open_store().bucket
    rules = Rules(
        keep_s=keep_days * DAY_S, grace_s=grace_hours * 3600, uploads_s=uploads_days * DAY_S
    )
    with bytes_bar() as on_progress:
        found = (
            delete_garbage(bucket, rules, on_progress) if delete else find_garbage(bucket, rules)
        )
    if as_json:
        garbage = [{"kind": g.kind, "key": g.key, "size_bytes": g.size_bytes} for g in found]
        print_json({"deleted": delete, "kinds": _by_kind(found), "objects": garbage})
        return
    rows = [
        (kind, str(sums["count"]), size(sums["size_bytes"]))
        for kind, sums in _by_kind(found).items()
    ]
    rows.append(("in all", str(len(found)), size(sum(g.size_bytes for g in found))))
    print_table(("Freed" if delete else "Would be freed", "Count", "Size"), rows)
    if not delete and found:
        say("Nothing was deleted; add --delete to do it.")


@app.command()
def pin(
    engine: EngineId,
    why: Annotated[str, typer.Option(help="For whoever finds the pin later")] = "",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Let gc keep an engine that no alias points at."""
    from trtforge.store.aliases import who
    from trtforge.store.pins import pin as pin_engine

    store = open_store()
    engine_id = store.get_manifest(engine).engine_id
    made = pin_engine(store.bucket, store.manifests, engine_id, by=by or who(), why=why)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        say(f"{engine_id[:SHOWN_DIGITS]} is pinned")


@app.command()
def unpin(engine: EngineId, as_json: AsJson = False) -> None:
    """Take a pin away again."""
    from trtforge.store.pins import unpin as unpin_engine

    store = open_store()
    engine_id = store.get_manifest(engine).engine_id
    removed = unpin_engine(store.bucket, engine_id)
    if as_json:
        print_json({"engine_id": engine_id, "removed": removed})
    else:
        say(f"{engine_id[:SHOWN_DIGITS]} {'is no longer' if removed else 'was not'} pinned")


@app.command()
def pins(as_json: AsJson = False) -> None:
    """List the pinned engines."""
    from trtforge.store.pins import pins as all_pins

    found = list(all_pins(open_store().bucket))
    if as_json:
        print_json([pin.model_dump(mode="json") for pin in found])
        return
    rows = [(p.engine_id[:SHOWN_DIGITS], p.by, f"{p.at:%Y-%m-%d %H:%M}", p.why) for p in found]
    print_table(("Engine", "By", "Pinned (UTC)", "Why"), rows)


def _show(found: "Verification") -> None:
    if found.damage:
        rows = []
        for damage in found.damage:
            engines = [engine[:SHOWN_DIGITS] for engine in damage.engines[:_SHOWN_ENGINES]]
            more = len(damage.engines) - len(engines)
            needed = ", ".join(engines) + (f" and {more} more" if more else "")
            if damage.others:
                needed += f"{', ' if needed else ''}{len(damage.others)} stage results or caches"
            state = "repaired" if damage.repaired else damage.fault
            rows.append((damage.key, state, size(damage.size_bytes), needed))
        print_table(("Object", "State", "Size", "Needed by"), rows)
    whole = found.blobs - sum(damage.key.startswith("blobs/") for damage in found.remaining)
    say(f"{whole} of {found.blobs} blobs are whole ({size(found.size_bytes)} read)")


def _by_kind(found: "list[Garbage]") -> dict[str, dict[str, int]]:
    from trtforge.store.gc import KINDS

    sums: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        sizes = [garbage.size_bytes for garbage in found if garbage.kind == kind]
        if sizes:
            sums[kind] = {"count": len(sizes), "size_bytes": sum(sizes)}
    return sums
