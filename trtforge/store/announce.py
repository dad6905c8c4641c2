"""Keeping what is published apart from what is swept: announce first, look second.

The danger: a publisher finds blob B in the bucket and does not upload it; `gc` found nothing that
needs B; the publisher's manifest and the deletion of B pass each other. S3 has no transaction over
two objects, and a conditional delete does not help, since the same bytes have the same ETag. So
both sides do what Dekker's algorithm does for two threads. S3 is strongly consistent (so are
MinIO, SeaweedFS, R2 and Ceph within one site): a read after a write that was answered sees it.

* Who is about to rely on objects (publish a manifest, move an alias, pin an engine) **announces**
  them (`gc/announced/<id>.json`), *then* reads `gc/sweep.json`. If a sweep condemns one of them,
  it waits until the sweep is over. *Then* it checks that they are there, writes its record, and
  withdraws the announcement.
* Who sweeps **condemns** (creates `gc/sweep.json`, with the list), *then* reads the announcements,
  *then* marks anew from every record, and deletes only what is condemned, not announced and not
  marked. Then it removes `gc/sweep.json`. Manifests and stage records that nothing keeps go in
  sweeps of their own, before the blobs; a blob goes when no record that exists names it. So an
  engine that was spared keeps its blobs, and a `gc` that dies leaves blobs too many, never too few.

Why no record that was written this way lacks an object B it relies on, afterwards: either the
announcement was written before `gc` listed the announcements, or after.
*Before*: `gc` sees it, and spares B; or it was withdrawn already, then the record had been written
before the withdrawal, thus before `gc` began to mark, and the mark spares B.
*After*: the announcement comes after the condemnation, and so does the publisher's reading of
`gc/sweep.json`. It finds the sweep, and waits for its end; or the sweep has ended. Either way all
deletions are done when it checks whether B is there, and if B is not, it is uploaded again, being
then too young for any sweep to list.

Both sides may be killed. A dead publisher's announcement counts for `ANNOUNCED_S`; what it would
have to outlast is one check of an engine's blobs and one write, not the uploads, which come before.
A dead sweeper's list binds for `Sweep.lasts_s`, which is longer than it could have had a request
under way: it stops deleting `issues_s` after the condemnation, and the rest is what the client's
timeouts and retries can take. Ages are told by the service's clock alone.
"""

import logging
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError
from pydantic import AwareDatetime, Field

from trtforge.errors import ServiceError
from trtforge.files import FileRef
from trtforge.store.client import error_code
from trtforge.store.layout import SWEEP, announcement_key, blob_key, manifest_key
from trtforge.store.objects import NOT_FOUND, Bucket
from trtforge.store.records import Record, Sha256, now, parse_record

ANNOUNCED_S = 7 * 24 * 3600.0
"""How long the announcement of a publisher that died counts."""

_LONGEST_PAUSE_S = 2.0
_log = logging.getLogger(__name__)


class SweepHangsError(ServiceError):
    """A sweep that condemns what is to be published does not come to its end."""


class Announcement(Record):
    """What somebody is about to rely on: engines by id, blobs by digest."""

    engine_ids: tuple[Sha256, ...]
    blobs: tuple[Sha256, ...]
    at: AwareDatetime


class Sweep(Record):
    """What a running `gc` is about to delete.

    Attributes:
        id: Unique; tells one sweep from the next.
        condemned: Keys.
        lasts_s: Seconds after which, at the latest, nothing more is deleted on its behalf.
    """

    id: str
    condemned: tuple[str, ...]
    lasts_s: float = Field(gt=0)
    at: AwareDatetime


@dataclass(frozen=True)
class RunningSweep:
    """A sweep that was found, and for how long it binds, by the service's clock."""

    sweep: Sweep
    etag: str
    left_s: float


@contextmanager
def announced(
    bucket: Bucket, *, engine_ids: Sequence[str] = (), files: Sequence[FileRef] = ()
) -> Iterator[None]:
    """Let no sweep delete these engines' manifests and blobs, nor these files, in the block.

    Inside, check that they are there before writing the record that needs them.

    Raises:
        SweepHangsError: A sweep that condemns them does not end.
    """
    blobs = tuple(sorted({ref.sha256 for ref in files}))
    record = Announcement(engine_ids=tuple(engine_ids), blobs=blobs, at=now())
    key = announcement_key(uuid.uuid4().hex)
    bucket.put(key, record.to_bytes())
    try:
        _wait_for_sweep(
            bucket,
            {blob_key(sha256) for sha256 in blobs} | {manifest_key(e) for e in engine_ids},
        )
        yield
    finally:
        # Left behind, it keeps things a while longer; the outcome of the block matters more.
        with suppress(ServiceError):
            bucket.delete(key)


def running_sweep(bucket: Bucket) -> RunningSweep | None:
    """The sweep that is going on, or that was left behind; `left_s` is negative when it is over."""
    with bucket.calling():
        try:
            answer = bucket.client.get_object(Bucket=bucket.name, Key=SWEEP)
            data = answer["Body"].read()
        except ClientError as error:
            if error_code(error) in NOT_FOUND:
                return None
            raise
    sweep = parse_record(Sweep, data, bucket.uri(SWEEP))
    age_s = (answered_at(answer) - answer["LastModified"]).total_seconds()
    return RunningSweep(sweep, answer["ETag"], sweep.lasts_s - age_s)


def answered_at(answer: dict[str, Any]) -> datetime:
    """When the service sent an answer, by its own clock; ours where it does not say."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    try:
        return parsedate_to_datetime(date).astimezone(UTC)
    except (TypeError, ValueError):
        return datetime.now(UTC)


def _wait_for_sweep(bucket: Bucket, needed: set[str]) -> None:
    """Return when no sweep that began before can delete what is needed any more."""
    deadline: float | None = None
    waited_for = ""
    pause_s = 0.05
    while True:
        running = running_sweep(bucket)
        if running is None or running.left_s < 0:
            return
        if needed.isdisjoint(running.sweep.condemned):
            return
        if running.sweep.id != waited_for:
            waited_for = running.sweep.id
            deadline = deadline or time.monotonic() + 2 * running.sweep.lasts_s
            _log.info("waiting for a running `trtforge store gc` to end")
        if deadline and time.monotonic() > deadline:
            raise SweepHangsError(
                "sweeps follow each other without an end",
                field="object",
                value=bucket.uri(SWEEP),
                remedy="Stop the repeated `trtforge store gc`, then start the same run again",
            )
        time.sleep(pause_s * random.uniform(0.5, 1))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
