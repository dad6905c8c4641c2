"""Leases of GPU cards on the Prefect server: taken, kept through an outage, freed after a crash.

Prefect's own `concurrency` renews a lease at three quarters of its time, so one that survives an
outage of minutes would keep the card of a killed run for most of an hour. These are renewed every
minute and last for longer than an outage may; and as every run notes on itself which leases it
has, whoever sees it end badly frees its cards at once.
"""

import contextlib
import contextvars
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import (
    TERMINAL_STATES,
    ConcurrencyLeaseHolder,
    FlowRun,
)
from prefect.client.schemas.sorting import FlowRunSort

# Longer than a server may be away without the run ending (PREFECT_CLIENT_MAX_RETRIES).
_LEASE_S = 900.0
_RENEW_EVERY_S = 60.0
# The shortest that Prefect gives: an answer that is lost on the way, with its lease, blocks the
# card for no longer.
_FIRST_LEASE_S = 60.0
_LABEL = "trtforge.lease."
_RUNS_LOOKED_AT = 20
_log = logging.getLogger("trtforge")


class CardLimitMissingError(RuntimeError):
    """The limit of a card was deleted in the moment between its making and its use."""


def take(client: SyncPrefectClient, card: str, run_id: UUID | None) -> UUID | None:
    """The lease of a card, which has a limit of this name on the server; None: it is not free."""
    holder = ConcurrencyLeaseHolder(type="flow_run", id=run_id) if run_id else None
    try:
        answer = client.increment_concurrency_slots_with_lease(
            [card], 1, "concurrency", _FIRST_LEASE_S, holder
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.LOCKED:
            return None
        raise
    taken = answer.json()
    if not taken["limits"]:
        raise CardLimitMissingError(f"the server has no limit {card}")
    return UUID(taken["lease_id"])


def give_back(client: SyncPrefectClient, leases: Sequence[UUID]) -> None:
    """Free what these leases hold. One that is over already does no harm."""
    for lease in leases:
        client.release_concurrency_slots_with_lease(lease)


@contextmanager
def kept(leases: dict[str, UUID], run_id: UUID | None) -> Iterator[None]:
    """Keep leases (by card) while the block runs, and give them back after it.

    Args:
        run_id: Of the flow run that notes them on itself, for `free_cards_of`.
    """
    ended = threading.Event()
    # The settings of Prefect, and the run that the log belongs to, are in the context.
    context = contextvars.copy_context()
    keeper = threading.Thread(
        target=lambda: context.run(_keep, leases, run_id, ended),
        daemon=True,
        name="keep-cards",
    )
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def renew(
    client: SyncPrefectClient, leases: dict[str, UUID], card: str, run_id: UUID | None
) -> None:
    """Make the lease of a card last; take the card again if the server has lost it."""
    try:
        client.renew_concurrency_lease(leases[card], _LEASE_S)
        return
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.GONE:
            _log.warning("the lease of %s was not renewed: %s", card, error)
            return
    except httpx.HTTPError as error:
        # There are minutes before it is over.
        _log.debug("the lease of %s was not renewed: %s", card, error)
        return
    # The server was away for longer than the lease lasts, or lost it.
    with contextlib.suppress(httpx.HTTPError):
        lease = take(client, card, run_id)
        if lease is None:
            _log.warning("%s was given to another run, which may be in the way of this one", card)
            return
        leases[card] = lease
        note(client, leases, run_id)


def note(client: SyncPrefectClient, leases: dict[str, UUID], run_id: UUID | None) -> None:
    """Note on the run what it holds, where those who have to free it look."""
    if run_id is None:
        return
    with contextlib.suppress(httpx.HTTPError):
        run = client.read_flow_run(run_id)
        client.update_flow_run(run_id, tags={*run.tags, *leases})
        client.update_flow_run_labels(
            run_id, {f"{_LABEL}{card}": str(lease) for card, lease in leases.items()}
        )


def free_cards_of(client: SyncPrefectClient, run: FlowRun) -> None:
    """Free the cards of a run that has ended, and could not do so itself."""
    give_back(client, _noted(run))


def free_cards_of_the_dead(client: SyncPrefectClient, card: str, freed: set[UUID]) -> None:
    """Free a card if a run that has ended still holds it.

    Args:
        freed: Leases that need not be looked at again; those of now are added.
    """
    ended = FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(TERMINAL_STATES)))
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=ended, tags=FlowRunFilterTags(all_=[card])),
        sort=FlowRunSort.END_TIME_DESC,
        limit=_RUNS_LOOKED_AT,
    )
    for run in runs:
        leases = set(_noted(run)) - freed
        give_back(client, list(leases))
        freed |= leases


def _noted(run: FlowRun) -> list[UUID]:
    return [UUID(str(v)) for k, v in run.labels.items() if k.startswith(_LABEL)]


def _keep(leases: dict[str, UUID], run_id: UUID | None, ended: threading.Event) -> None:
    # One client for all of it: it has reached the server, and waits for it should it be away.
    with get_client(sync_client=True) as client:
        note(client, leases, run_id)
        while True:
            for card in list(leases):
                renew(client, leases, card, run_id)
            if ended.wait(_RENEW_EVERY_S):
                break
        try:
            give_back(client, list(leases.values()))
        except httpx.HTTPError as error:
            # Those who want it find that this run has ended.
            _log.warning("%s was not given back: %s", ", ".join(leases), error)
