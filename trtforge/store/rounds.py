"""Reading every byte of the store in daily shares, so that damage is found in weeks, not at need.

A blob's own digest says on which day of a round it is read, so nothing has to be remembered from
one day to the next: on day `d`, the blobs whose digest is `d` modulo the round's length. Run every
day, a round reads every blob once.
"""

from dataclasses import dataclass
from datetime import date
from math import ceil
from typing import TYPE_CHECKING

from trtforge.progress import OnProgress, ignore
from trtforge.store.inventory import listed
from trtforge.store.layout import BLOBS
from trtforge.store.verify import Verification, verify_store

if TYPE_CHECKING:
    from trtforge.store import Store

_DIGITS = 12


@dataclass(frozen=True)
class Share:
    """One day of a round, and how that went.

    Attributes:
        days: Length of the round: so many shares are the whole store.
        verification: What was read, and what was wrong.
    """

    days: int
    verification: Verification


def round_days(stored_bytes: int, most_bytes: int, days: int) -> int:
    """How many shares the store is read in: `days`, or more where a share would be too large."""
    return max(days, ceil(stored_bytes / most_bytes), 1)


def is_due(sha256: str, on: date, days: int) -> bool:
    """Whether a blob belongs to the share of this day."""
    return int(sha256[:_DIGITS], 16) % days == on.toordinal() % days


def verify_share(
    store: "Store", on: date, *, most_bytes: int, days: int, on_progress: OnProgress = ignore
) -> Share:
    """Read the share of a day: all records that can be damaged, and the blobs that are due.

    The share of a day is of about `most_bytes` at most: blobs are read whole, and chance makes
    some shares larger than others.
    """
    stored_bytes = sum(item.size_bytes for item in listed(store.bucket, BLOBS))
    length = round_days(stored_bytes, most_bytes, days)
    found = verify_store(
        store, on_progress=on_progress, choose=lambda sha256: is_due(sha256, on, length)
    )
    return Share(length, found)
