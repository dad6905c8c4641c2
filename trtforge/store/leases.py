"""Leases: a stage that a running builder elsewhere works on is waited for, not made twice.

    leases/<stage>/<key>.json   who works on it; taken and renewed by compare-and-swap, then deleted

A lease saves work and nothing else. A stage record is written once whoever made it, so two
builders that both believe to hold a lease cost time, never a wrong engine. Whenever leases cannot
work, the build goes on without: when the service has no real conditional writes or forbids the
lease's key, and when the lease was lost (somebody took it over, or the storage did not answer for
longer than the lease lasts). A builder that lost its lease finishes with a warning; the first one
to record the stage wins, and both use that record.

When is a holder dead? The clocks of machines differ, so no time in a record is ever compared with
a clock. A lease is over as soon as one of these is true:

* it says so (`ttl_s` 0: its holder could not delete it);
* its holder was a process of this very machine (same boot, same PID namespace) that is gone;
* it has not changed for `ttl_s` seconds on the monotonic clock of the one who waits. Every renewal
  changes the record, and the take-over is a swap of exactly the bytes that were watched, so a
  holder that renews in the last moment keeps its lease;
* at first sight it is older than twice `ttl_s` by the *server's* two times, `Last-Modified` and
  `Date` of one answer. This spares the wait for a machine that died yesterday; the factor allows
  for front ends whose clocks differ, and if they differ by more, work is done twice.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar

from botocore.exceptions import ClientError

from trtforge.errors import ServiceError
from trtforge.store.client import StoreAccessError, StoreUnreachableError, error_code
from trtforge.store.layout import lease_key
from trtforge.store.lease_record import Holder, LeaseRecord
from trtforge.store.objects import NOT_FOUND, Bucket, ConditionalWritesError, ContendedError
from trtforge.store.records import RecordInvalidError, UnknownFormatError, now, parse_record

TTL_S = 60.0
POLL_S = (1.0, 5.0)
_RENEWALS_PER_TTL = 4
_SURELY_OLD = 2.0
_WAIT_GROWS = 1.5
_STOP_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)
T = TypeVar("T")


OnWait = Callable[[str], None]


class Leases:
    """The leases of a bucket.

    Args:
        ttl_s: How long a lease lasts that is not renewed.
        poll_s: Waits between two looks at somebody else's lease: the first, and the longest.
    """

    def __init__(
        self, bucket: Bucket, *, ttl_s: float = TTL_S, poll_s: tuple[float, float] = POLL_S
    ) -> None:
        self._bucket = bucket
        self._ttl_s = ttl_s
        self._poll_s = poll_s
        self._useless = False

    @contextmanager
    def claimed(
        self,
        stage: str,
        key: str,
        find: Callable[[], T | None],
        *,
        on_wait: OnWait = lambda _: None,
        run_id: str | None = None,
    ) -> Iterator[T | None]:
        """Hold the lease of a stage while the block makes it, or find it made by another builder.

        Waits while another builder holds the lease. Yields None when the stage is to be made now,
        with the lease held and renewed by a thread until the block ends, however it ends; or what
        `find` returned, and then no lease is held.

        Args:
            find: Looks the stage's record up; called whenever a holder has ended, and once the
                lease is taken. One that always returns None makes the stage again (`force`).
            on_wait: Called with a line for people, every time the other's lease was looked at.

        Raises:
            StoreUnreachableError: While waiting. (Once the lease is held, it is only warned of.)
        """
        lease = _Lease(self._bucket, stage, key, Holder.here(run_id), self._ttl_s)
        try:
            found = self._wait(lease, find, on_wait)
            if lease.held:
                lease.keep()
                found = find()
            if found is not None:
                lease.release()
            yield found
        finally:
            lease.release()

    def _wait(self, lease: "_Lease", find: Callable[[], T | None], on_wait: OnWait) -> T | None:
        """Return when the lease is held or cannot be (None), or when `find` found the record."""
        wait_s, longest_s = self._poll_s
        holder: str | None = None
        while not self._acquired(lease) and not lease.given_up:
            line = f"waiting for {lease.other or 'another builder'} to finish {lease.stage}"
            if lease.other_token != holder:
                # The one who had it until now has ended, perhaps with a record.
                if holder is not None and (found := find()) is not None:
                    return found
                holder = lease.other_token
                _log.info("%s", line)
            on_wait(line)
            time.sleep(min(wait_s, longest_s))
            wait_s *= _WAIT_GROWS
            if lease.is_gone() and (found := find()) is not None:
                return found
        return None

    def _acquired(self, lease: "_Lease") -> bool:
        lease.given_up = self._useless
        try:
            return not lease.given_up and lease.acquire()
        except (ConditionalWritesError, StoreAccessError) as error:
            self._useless = lease.given_up = True
            _log.warning(
                "other builders are not told what this one works on, and may do it too: %s", error
            )
        except ContendedError as error:
            lease.given_up = True
            _log.warning("working on stage %s without a lease: %s", lease.stage, error)
        return False


class _Lease:
    """One lease, as one holder sees it."""

    def __init__(self, bucket: Bucket, stage: str, key: str, holder: Holder, ttl_s: float) -> None:
        self.stage = stage
        self.held = False
        self.given_up = False
        self._bucket = bucket
        self._key = lease_key(stage, key)
        self._stage_key = key
        self._holder = holder
        self._ttl_s = ttl_s
        self._acquired_at = now()
        self._renewals = 0
        # Of another holder's lease: what it says, its bytes, when those were first seen, and
        # whether they were old already.
        self.other: LeaseRecord | None = None
        self._seen: bytes | None = None
        self._seen_at_s = 0.0
        self._old = False
        # Of the thread that renews.
        self._lost = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # Taking it

    def acquire(self) -> bool:
        """Take it if it is free or over; otherwise remember who has it."""
        over = False

        def decide(data: bytes | None) -> bytes | None:
            nonlocal over
            self._acquired_at = now()
            # Ours: the answer to an earlier try was lost on the way.
            over = data is not None and not self._is_ours(data) and self._is_over(data)
            free = data is None or self._is_ours(data) or over
            return self._record(self._ttl_s) if free else None

        self.held = self._bucket.update(self._key, decide)
        if self.held and over:
            _log.info("taking stage %s over from %s", self.stage, self.other or "another builder")
        return self.held

    def is_gone(self) -> bool:
        """Whether nobody has it just now."""
        return self._bucket.head(self._key) is None

    @property
    def other_token(self) -> str:
        """Changes when another holder follows on the one before."""
        return self.other.holder.token if self.other else ""

    def _is_over(self, data: bytes) -> bool:
        if data != self._seen:
            first_sight = self._seen is None
            self._seen, self._seen_at_s = data, time.monotonic()
            self.other = self._parse(data)
            self._old = first_sight and self._age_s() > _SURELY_OLD * self._other_ttl_s
        if self.other and (self.other.ttl_s == 0 or self.other.holder.is_dead):
            return True
        return self._old or time.monotonic() - self._seen_at_s >= self._other_ttl_s

    @property
    def _other_ttl_s(self) -> float:
        # What cannot be read was written by a newer version, or by hand: it gets the usual time.
        return self.other.ttl_s if self.other else self._ttl_s

    def _age_s(self) -> float:
        """How old the object is by the server's own times; 0 when it does not say."""
        with self._bucket.calling():
            try:
                answer = self._bucket.client.head_object(Bucket=self._bucket.name, Key=self._key)
            except ClientError as error:
                if error_code(error) in NOT_FOUND:
                    return 0.0
                raise
        try:
            date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            age: timedelta = date - answer["LastModified"]
        except (KeyError, TypeError, ValueError):
            return 0.0
        return age.total_seconds()

    # Keeping it

    def keep(self) -> None:
        """Renew it from now on, in a thread of its own."""
        # What is missed now is made up for by the next renewal, and an end must not be held up.
        self._bucket = self._bucket.impatient()
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True, name="lease")
        self._thread.start()

    def _renew_until_ended(self) -> None:
        renewed_at_s = time.monotonic()
        warned = False
        while not self._ended.wait(self._ttl_s / _RENEWALS_PER_TTL):
            try:
                self._renew()
                renewed_at_s, warned = time.monotonic(), False
            except ServiceError as error:
                if not warned and time.monotonic() - renewed_at_s >= self._ttl_s:
                    warned = True
                    _log.warning(
                        "stage %s goes on, but another builder may begin it too: the lease could "
                        "not be renewed (%s)",
                        self.stage,
                        error,
                    )
            if self._lost:
                _log.warning(
                    "another builder took stage %s over; this one goes on too, and the first to "
                    "finish wins",
                    self.stage,
                )
                return

    def _renew(self) -> None:
        def decide(data: bytes | None) -> bytes | None:
            self._lost = data is not None and not self._is_ours(data)
            if self._lost or self._ended.is_set():
                return None
            self._renewals += 1
            return self._record(self._ttl_s)

        self._bucket.update(self._key, decide)

    # Letting go

    def release(self) -> None:
        """Delete it if it is still ours. Never fails: a lease that stays is over by itself."""
        if not self.held or os.getpid() != self._holder.pid:  # a forked child's is its parent's
            return
        self.held = False
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)
            if self._thread.is_alive():  # the storage does not answer; it would not answer us
                return
        if self._lost:
            return
        try:
            stored = self._bucket.get(self._key)
            if stored is not None and self._is_ours(stored.data):
                self._delete(stored.etag)
        except ServiceError as error:
            _log.debug("a lease of stage %s was left behind: %s", self.stage, error)

    def _delete(self, etag: str) -> None:
        try:
            with self._bucket.calling():
                self._bucket.client.delete_object(
                    Bucket=self._bucket.name, Key=self._key, IfMatch=etag
                )
        except StoreUnreachableError:
            raise
        except ServiceError:
            # No permission to delete, or no conditional delete. Or it is not ours any more, and
            # then this does nothing.
            self._renewals += 1
            self._bucket.swap(self._key, self._record(0.0), etag)

    def _is_ours(self, data: bytes) -> bool:
        record = self._parse(data)
        return record is not None and record.holder.token == self._holder.token

    def _record(self, ttl_s: float) -> bytes:
        return LeaseRecord(
            stage=self.stage,
            key=self._stage_key,
            holder=self._holder,
            acquired_at=self._acquired_at,
            ttl_s=ttl_s,
            renewals=self._renewals,
        ).to_bytes()

    def _parse(self, data: bytes) -> LeaseRecord | None:
        try:
            return parse_record(LeaseRecord, data, self._bucket.uri(self._key))
        except (RecordInvalidError, UnknownFormatError):
            return None
