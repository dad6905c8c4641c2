"""Leases of GPU cards on a real Prefect server: one holder each, and none for the dead."""

import uuid
from collections.abc import Iterator
from uuid import UUID

import pytest
from forge import prefect_client_environment
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)
from prefect.states import Crashed, Running

from tasks import card_leases
from trtforge.stack import StackInfo


@pytest.fixture(scope="module")
def client(stack: StackInfo) -> Iterator[SyncPrefectClient]:
    environment = prefect_client_environment(stack)
    settings = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def card(client: SyncPrefectClient) -> str:
    name = f"gpu:GPU-{uuid.uuid4()}"
    limit = GlobalConcurrencyLimitCreate(name=name, limit=1, active=True)
    client.create_global_concurrency_limit(limit)
    return name


@flow(name="holds-a-card")
def _holds_a_card() -> None:
    """Only its runs are needed."""


def _run(client: SyncPrefectClient) -> UUID:
    return client.create_flow_run(_holds_a_card, state=Running()).id


def _taken(client: SyncPrefectClient, card: str) -> int:
    return client.read_global_concurrency_limit_by_name(card).active_slots


def test_a_card_has_one_holder(client: SyncPrefectClient, card: str) -> None:
    lease = card_leases.take(client, card, None)
    assert lease is not None
    assert card_leases.take(client, card, None) is None
    card_leases.give_back(client, [lease])
    # Twice does no harm: it is somebody else's by now.
    assert card_leases.take(client, card, None) is not None
    card_leases.give_back(client, [lease])
    assert _taken(client, card) == 1


def test_a_card_without_a_limit_is_nobodys(client: SyncPrefectClient) -> None:
    with pytest.raises(card_leases.CardLimitMissingError):
        card_leases.take(client, "gpu:GPU-unknown", None)


def test_a_card_of_a_run_that_has_ended_is_freed_and_of_no_other(
    client: SyncPrefectClient, card: str
) -> None:
    run = _run(client)
    lease = card_leases.take(client, card, run)
    assert lease is not None
    card_leases.note(client, {card: lease}, run)
    freed: set[UUID] = set()
    card_leases.free_cards_of_the_dead(client, card, freed)
    assert _taken(client, card) == 1
    client.set_flow_run_state(run, Crashed(), force=True)
    card_leases.free_cards_of_the_dead(client, card, freed)
    assert _taken(client, card) == 0
    assert freed == {lease}


def test_a_lease_that_the_server_lost_is_taken_again_unless_somebody_has_it(
    client: SyncPrefectClient, card: str
) -> None:
    run = _run(client)
    lease = card_leases.take(client, card, run)
    assert lease is not None
    leases = {card: lease}
    card_leases.give_back(client, [lease])
    card_leases.renew(client, leases, card, run)
    assert leases[card] != lease
    assert _taken(client, card) == 1
    again = leases[card]
    card_leases.give_back(client, [again])
    other = card_leases.take(client, card, None)
    card_leases.renew(client, leases, card, run)
    assert leases[card] == again
    assert other is not None
    assert _taken(client, card) == 1
