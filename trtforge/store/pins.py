"""Pins: engines that `gc` keeps although no alias points at them."""

from collections.abc import Iterator

from pydantic import AwareDatetime

from trtforge.store.announce import announced
from trtforge.store.layout import PINS, pin_key
from trtforge.store.manifests import Manifests
from trtforge.store.objects import Bucket
from trtforge.store.records import Record, Sha256, now, parse_record


class Pin(Record):
    """Who wants an engine kept, and why."""

    engine_id: Sha256
    by: str
    why: str
    at: AwareDatetime


def pin(bucket: Bucket, manifests: Manifests, engine_id: str, *, by: str, why: str = "") -> Pin:
    """Keep an engine; pinning again replaces who and why.

    Raises:
        EngineUnknownError: It is not published.
    """
    record = Pin(engine_id=engine_id, by=by, why=why, at=now())
    with announced(bucket, engine_ids=[engine_id]):
        if not manifests.exists(engine_id):
            raise manifests.unknown(engine_id)
        bucket.put(pin_key(engine_id), record.to_bytes())
    return record


def unpin(bucket: Bucket, engine_id: str) -> bool:
    """Let an engine go when nothing else keeps it; False when it was not pinned."""
    if bucket.head(pin_key(engine_id)) is None:
        return False
    bucket.delete(pin_key(engine_id))
    return True


def pins(bucket: Bucket) -> Iterator[Pin]:
    """All pins."""
    for key in bucket.keys(PINS):
        stored = bucket.get(key)
        if stored:  # else removed since the listing
            yield parse_record(Pin, stored.data, bucket.uri(key))
