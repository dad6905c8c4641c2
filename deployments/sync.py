"""Make a Prefect server match the files of this directory: what `trtforge deploy` does.

Done again, it changes nothing. What people do in the UI stays: pauses of pools, deployments and
schedules, disabled automations, schedules without a slug, everything that is not the files'.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from deployments import automating, deploying
from deployments.changes import Change, Notice, SyncReport
from deployments.desired import Desired, desired
from deployments.errors import PoolTypeError
from deployments.files import HERE, Limit, Variable, read
from deployments.ledger import Ledger
from deployments.server import connected

__all__ = ["Change", "Notice", "SyncReport", "sync"]


def sync(
    files: Path | None = None,
    *,
    dry_run: bool = False,
    only_pools: Collection[str] | None = None,
) -> SyncReport:
    """Make the server of this process's Prefect settings match the files.

    Pools, limits and variables first, then deployments with their schedules, then automations; what
    the files no longer have is deleted where it is known to be theirs (deployments by the tag
    `trtforge`, schedules by slug, automations by the beginning of their names). Broken off, it goes
    on the next time.

    Args:
        files: A directory like this one; None: this one.
        dry_run: Only find out.
        only_pools: Pools to be made, with their deployments; what runs on the other pools of the
            files is left as it is. None: all.

    Raises:
        InputError: Something in the files is wrong (`deployments.errors`); nothing was changed.
        PoolTypeError: A pool cannot become what the files say; nothing was changed.
        ServerUnreachableError: The server does not answer.
        ServerLoginError: It does not accept the login.
        ServerRefusedError: It refused a change; those before it were made.
    """
    wanted = desired(read(files or HERE), only_pools)
    with connected(dry_run=dry_run) as server:
        ledger = Ledger(server)
        _pools(ledger, wanted)
        _by_name(ledger, "limit", "/v2/concurrency_limits", wanted.limits)
        _by_name(ledger, "variable", "/variables", wanted.variables)
        webhook_ids = _blocks(ledger, wanted)
        found = deploying.find(ledger, wanted.deployments)
        ids = deploying.apply(ledger, wanted.deployments, found)
        names = frozenset(deployment.full_name for deployment in wanted.deployments)
        automating.apply(ledger, wanted.automations, ids, webhook_ids, names)
        deploying.prune(ledger, wanted.deployments, found, wanted.pools_elsewhere)
    return ledger.report(dry_run=dry_run)


def _pools(ledger: Ledger, wanted: Desired) -> None:
    found = {pool["name"]: pool for pool in ledger.server.pages("/work_pools/filter")}
    for pool in wanted.pools:
        have = found.get(pool.name)
        if have is not None and have["type"] != pool.type:
            raise PoolTypeError(
                f"the server has a pool of that name and of the type {have['type']}, which cannot "
                f"be changed to {pool.type}",
                field=f"pools.yaml: {pool.name}.type",
                value=pool.type,
                remedy="Rename one of them, or delete the server's with "
                f"`prefect work-pool delete {pool.name}`, with its runs' queue",
            )
    for pool in wanted.pools:
        have = found.get(pool.name)
        if have is None:
            body = {"name": pool.name, "type": pool.type, **pool.body}
            ledger.create("pool", pool.name, "/work_pools/", body)
            continue
        comparable = {key: have[key] for key in pool.body}
        comparable["description"] = comparable["description"] or ""
        ledger.match("pool", pool.name, comparable, pool.body, f"/work_pools/{pool.name}")
        if have["is_paused"]:
            ledger.notice("pool", pool.name, "kept", "paused in the UI; resume it there")


def _by_name(ledger: Ledger, kind: str, route: str, wanted: Iterable[Limit | Variable]) -> None:
    """Make those of a kind that have a name and nothing else of their own."""
    found = {have["name"]: have for have in ledger.server.pages(f"{route}/filter")}
    for one in wanted:
        have = found.get(one.name)
        body = one.model_dump()
        if have is None:
            ledger.create(kind, one.name, f"{route}/", body)
        else:
            comparable = {key: have[key] for key in body}
            ledger.match(kind, one.name, comparable, body, f"{route}/{have['id']}")


def _blocks(ledger: Ledger, wanted: Desired) -> dict[str, str]:
    """Say which blocks are missing; the ids of the webhooks, by name."""
    names = sorted({block.name for block in wanted.blocks})
    body = {"block_documents": {"name": {"any_": names}}, "include_secrets": False}
    found = {
        (block["block_type"]["slug"], block["name"]): str(block["id"])
        for block in ledger.server.pages("/block_documents/filter", body)
    }
    for block in wanted.blocks:
        if (block.type, block.name) not in found:
            detail = f"needed for {block.needed_for}. {block.how_to_make}"
            ledger.notice("block", block.name, "missing", detail)
    return {name: block_id for (kind, name), block_id in found.items() if kind == "webhook"}
