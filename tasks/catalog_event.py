"""The event by which others tell that weights have changed."""

import uuid

from prefect.client.orchestration import get_client

from trtforge.sources import HubSource, parse_source
from trtforge.store.records import now

WEIGHTS_CHANGED = "trtforge.weights.changed"


def emit_weights_changed(source: str) -> str:
    """Send the event, and return its id when the server has it.

    Prefect's own `emit_event` hands it to a thread, and tells nobody when the server does not
    answer; who calls this wants to know, and to try again.
    """
    parsed = parse_source(source)
    name = parsed.repo_id if isinstance(parsed, HubSource) else source
    event_id = str(uuid.uuid4())
    event = {
        "id": event_id,
        "event": WEIGHTS_CHANGED,
        "occurred": now().isoformat(),
        "resource": {"prefect.resource.id": f"trtforge.weights.{name}"},
        "payload": {"source": source},
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event]).raise_for_status()
    return event_id
