"""Reading the store in daily shares, and telling how it is."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.store import Manifest, Store
from trtforge.store.gc import Garbage
from trtforge.store.health import BytesLostError, require_whole, take_stock
from trtforge.store.layout import blob_key
from trtforge.store.rounds import Share, is_due, round_days, verify_share

DAY = date(2026, 11, 23)
GB = 1_000_000_000


@given(
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.dates(max_value=date(2100, 1, 1)),
    st.integers(1, 400),
)
def test_every_blob_is_read_once_in_a_round(sha256: str, start: date, days: int) -> None:
    read = [day for day in range(days) if is_due(sha256, start + timedelta(days=day), days)]
    assert len(read) == 1


@pytest.mark.parametrize(
    ("stored_gb", "most_gb", "days", "expected"),
    [(100, 50, 30, 30), (6000, 50, 30, 120), (0, 50, 30, 30), (100, 200, 1, 1)],
)
def test_a_round_is_longer_where_a_share_would_be_too_large(
    stored_gb: int, most_gb: int, days: int, expected: int
) -> None:
    assert round_days(stored_gb * GB, most_gb * GB, days) == expected


def test_damage_is_found_within_a_round_and_its_engine_is_named(
    store: Store, publish: Callable[[str], Manifest]
) -> None:
    manifests = [publish(f"org/{name}") for name in "abc"]
    lost = manifests[1].core.files[0].sha256
    store.bucket.delete(blob_key(lost))
    shares = [verify_share(store, DAY + timedelta(days=n), most_bytes=GB, days=4) for n in range(4)]
    assert sum(share.verification.blobs for share in shares) == 3
    (damage,) = [d for share in shares for d in share.verification.remaining]
    assert (damage.key, damage.fault) == (blob_key(lost), "missing")
    assert damage.engines == (manifests[1].engine_id,)


def test_lost_bytes_are_an_error_that_names_them(
    store: Store, publish: Callable[[str], Manifest]
) -> None:
    manifest = publish("org/model")
    key = blob_key(manifest.core.files[0].sha256)
    require_whole(verify_share(store, DAY, most_bytes=GB, days=1).verification)
    store.bucket.delete(key)
    found = verify_share(store, DAY, most_bytes=GB, days=1).verification
    with pytest.raises(BytesLostError) as caught:
        require_whole(found)
    assert key in str(caught.value)
    assert f"engine {manifest.engine_id[:12]}" in str(caught.value)


def test_the_store_in_figures(store: Store, s3: Any, publish: Callable[[str], Manifest]) -> None:
    manifest = publish("org/model")
    s3.client.create_multipart_upload(Bucket=s3.bucket, Key="blobs/sha256/ab/half")
    share = Share(30, verify_share(store, DAY, most_bytes=GB, days=1).verification)
    garbage = [Garbage("blob", "blobs/x", 1000)]
    health = take_stock(store, share, freed=[], reclaimable=garbage)
    assert (health.engines, health.aliases, health.blobs) == (1, 0, 1)
    assert health.blob_bytes == manifest.core.size_bytes
    assert (health.reclaimable, health.reclaimable_bytes) == (1, 1000)
    assert health.unfinished_uploads == 1
    assert health.oldest_upload_s is not None
    assert health.damage == ()
    rows = {row["What"]: row["Figure"] for row in health.rows()}
    assert rows["State"] == "whole"
    assert rows["Everything is read"] == "every 30 days"
    assert rows["Reclaimable"] == "1.0 kB in 1 objects"
