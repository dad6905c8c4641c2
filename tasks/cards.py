"""GPU cards: each is a limit of one on the Prefect server, so that no two runs share a card.

A pool says who may compile; only the card says whether there is room. Cards are found by NVML,
named `gpu:<uuid>` (the same in every container of a host), and given to the toolchain by
CUDA_VISIBLE_DEVICES. On a machine without a GPU the machine itself is the card.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run

from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import LocalGpus, find_gpus
from trtforge.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_TRY_S = 1.0
_PAUSE_S = 3.0
_TELL_EVERY_S = 60.0
# A card whose holder was killed is free again after this long. A server that is away for longer
# takes a card from a run that works on; that run goes on.
_LEASE_S = 120.0


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
                client.read_global_concurrency_limit_by_name(card)
            except ObjectNotFound:
                try:
                    client.create_global_concurrency_limit(
                        GlobalConcurrencyLimitCreate(name=card, limit=1, active=True)
                    )
                except ObjectAlreadyExists:  # another run met the card at the same time
                    continue


@contextmanager
def _acquired(cards: Sequence[str], count: int) -> Iterator[tuple[str, ...]]:
    """Hold any `count` of `cards`.

    Whoever gets fewer than it needs gives back what it got, so that two runs that need several
    cards each never wait for each other.
    """
    logger = get_run_logger()
    holder = ConcurrencyLeaseHolder(type="flow_run", id=flow_run.id) if flow_run.id else None
    told = float("-inf")
    while True:
        with ExitStack() as stack:
            held: list[str] = []
            for card in cards:
                if len(held) == count:
                    break
                try:
                    stack.enter_context(
                        concurrency(
                            card,
                            timeout_seconds=_TRY_S,
                            lease_duration=_LEASE_S,
                            strict=True,
                            holder=holder,
                            raise_on_lease_renewal_failure=False,
                        )
                    )
                except TimeoutError:
                    continue
                held.append(card)
            if len(held) == count:
                logger.info("holding %s", ", ".join(held))
                yield tuple(held)
                return
        if time.monotonic() - told > _TELL_EVERY_S:
            logger.info("waiting for %d of the cards %s", count, ", ".join(cards))
            told = time.monotonic()
        time.sleep(_PAUSE_S)


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
