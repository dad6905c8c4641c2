"""What a lease in the bucket says: which process, on which machine, works on a stage."""

import os
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import Self

from pydantic import AwareDatetime, Field

from trtforge.store.records import Part, Record

_LONGEST_TTL_S = 3600.0


class Holder(Part):
    """A process that works on a stage.

    Attributes:
        machine: Boot and PID namespace: where `pid` means the same process. None: not known.
        process_started: Start of the process in clock ticks since that boot.
        run_id: Of the flow run, where there is one.
        token: Random, for each time a lease is taken.
    """

    host: str
    pid: int
    machine: str | None
    process_started: int | None
    run_id: str | None
    token: str

    @classmethod
    def here(cls, run_id: str | None = None) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=pid,
            machine=_machine(),
            process_started=_process_started(pid),
            run_id=run_id,
            token=uuid.uuid4().hex,
        )

    @property
    def is_dead(self) -> bool:
        """Whether this was a process of this machine and is gone; False when that is not known."""
        if self.machine is None or self.machine != _machine() or self.process_started is None:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # there is one, and it is another user's
            pass
        started = _process_started(self.pid)
        return started is not None and started != self.process_started


class LeaseRecord(Record):
    """Who works on a stage.

    Attributes:
        acquired_at: By the holder's clock; for people.
        ttl_s: The holder renews more often than this; 0: it has let go.
        renewals: Counts up, so that every renewal changes the record.
    """

    stage: str
    key: str
    holder: Holder
    acquired_at: AwareDatetime
    ttl_s: float = Field(ge=0, le=_LONGEST_TTL_S)
    renewals: int = Field(ge=0)

    def __str__(self) -> str:
        holder = self.holder
        run = f" of run {holder.run_id}" if holder.run_id else ""
        since = f"{self.acquired_at:%Y-%m-%d %H:%M} UTC by its clock"
        return f"process {holder.pid}{run} on {holder.host} (since {since})"


@cache
def _machine() -> str | None:
    """Where a PID means the same process; None where that cannot be told (not Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _process_started(pid: int) -> int | None:
    """Start of a process in ticks since boot, which no change of a clock moves.

    0 for one that has ended and was not waited for; None when it is not to be seen.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name before the last parenthesis may itself contain any character.
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
