"""GPU cards: each is a limit of one on the Prefect server, so that no two runs share a card.

A pool says who may compile; only the card says whether there is room. Cards are found by NVML,
named `gpu:<uuid>` (the same in every container of a host), and given to the toolchain by
CUDA_VISIBLE_DEVICES. On a machine without a GPU the machine itself is the card.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run

from tasks.card_leases import free_cards_of, free_cards_of_the_dead, give_back, kept, take
from tasks.patience import patiently
from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import LocalGpus, find_gpus
from trtforge.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PAUSE_S = 3.0
_TELL_EVERY_S = 60.0


class NotEnoughCardsError(InputError):
    """The engine needs more GPUs than the worker has, or may use."""


@contextmanager
def held_cards(count: int, gpus: LocalGpus | None = None) -> Iterator[tuple[str, ...]]:
    """Wait for `count` free cards of this machine, and hold them while the block runs.

    The toolchains that are started in the block see these GPUs only.

    Args:
        gpus: Of this machine; None asks NVML.

    Raises:
        NotEnoughCardsError: There are not as many.
    """
    uuids = visible_gpus((find_gpus() if gpus is None else gpus).uuids, os.environ.get(VISIBLE))
    cards = [f"gpu:{uuid}" for uuid in uuids] or [f"gpu:none:{socket.gethostname()}"]
    if uuids and count > len(cards):
        raise NotEnoughCardsError(
            f"the engine needs {count} GPUs, this worker has {len(cards)}",
            field="checkpoint.tp × checkpoint.pp",
            value=count,
            remedy="Choose a pool whose machines have more GPUs, or split over fewer",
        )
    _ensure_limits(cards)
    with _acquired(cards, min(count, len(cards))) as held, _visible(uuids, held):
        yield held


@contextmanager
def held_cards_if_gpu(toolchain: Toolchain, count: int) -> Iterator[None]:
    """As `held_cards`, for a build in one process, which compiles for the CPU on many machines."""
    if toolchain.device == "cpu":
        yield
        return
    with held_cards(count):
        yield


def visible_gpus(uuids: Sequence[str], setting: str | None) -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, by uuid; it names them by index or by uuid.

    As with CUDA, what follows an entry that names no GPU is hidden too.
    """
    if setting is None:
        return tuple(uuids)
    left: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal() and int(entry) < len(uuids):
            left.append(uuids[int(entry)])
            continue
        named = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
        if len(named) != 1:
            break
        left += named
    return tuple(left)


def _ensure_limits(cards: Sequence[str]) -> None:
    with get_client(sync_client=True) as client:
        for card in cards:
            try:
                patiently(partial(client.read_global_concurrency_limit_by_name, card))
            except ObjectNotFound:
                try:
                    client.create_global_concurrency_limit(
                        GlobalConcurrencyLimitCreate(name=card, limit=1, active=True)
                    )
                except ObjectAlreadyExists:  # another run met the card at the same time
                    continue


@contextmanager
def _acquired(cards: Sequence[str], count: int) -> Iterator[tuple[str, ...]]:
    """Hold any `count` of `cards`."""
    run_id = UUID(flow_run.id) if flow_run.id else None
    with get_client(sync_client=True) as client:
        if run_id:
            # Of an earlier attempt of this very run, which was killed.
            free_cards_of(client, patiently(lambda: client.read_flow_run(run_id)))
        leases = _wait_for(client, cards, count, run_id)
    with kept(leases, run_id):
        get_run_logger().info("holding %s", ", ".join(leases))
        yield tuple(leases)


def _wait_for(
    client: SyncPrefectClient, cards: Sequence[str], count: int, run_id: UUID | None
) -> dict[str, UUID]:
    told = float("-inf")
    freed: set[UUID] = set()
    while True:
        leases = _try_for(client, cards, count, run_id, freed)
        if leases is not None:
            return leases
        if time.monotonic() - told > _TELL_EVERY_S:
            get_run_logger().info("waiting for %d of the cards %s", count, ", ".join(cards))
            told = time.monotonic()
        time.sleep(_PAUSE_S)


def _try_for(
    client: SyncPrefectClient,
    cards: Sequence[str],
    count: int,
    run_id: UUID | None,
    freed: set[UUID],
) -> dict[str, UUID] | None:
    """The leases of `count` cards, or none at all.

    Whoever gets fewer than it needs gives back what it got, so that two runs that need several
    cards each never wait for each other.
    """
    leases: dict[str, UUID] = {}
    try:
        for card in cards:
            if len(leases) == count:
                break
            lease = take(client, card, run_id)
            if lease is None:
                free_cards_of_the_dead(client, card, freed)
                lease = take(client, card, run_id)
            if lease is not None:
                leases[card] = lease
    except BaseException:
        give_back(client, list(leases.values()))
        raise
    if len(leases) == count:
        return leases
    give_back(client, list(leases.values()))
    return None


@contextmanager
def _visible(uuids: Sequence[str], held: Sequence[str]) -> Iterator[None]:
    before = os.environ.get(VISIBLE)
    if uuids:
        os.environ[VISIBLE] = ",".join(card.removeprefix("gpu:") for card in held)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before
