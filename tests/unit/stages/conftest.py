"""A workshop on a real S3 server, with an empty bucket and disk space of its own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from trtforge.stages.stage import Workshop
from trtforge.store import Store


@pytest.fixture
def shop(s3: Any, tmp_path: Path) -> Workshop:
    store = Store.from_settings(
        endpoint_url=s3.endpoint_url,
        bucket=s3.bucket,
        access_key_id=s3.access_key_id,
        secret_access_key=SecretStr(s3.secret_access_key),
        cache_dir=tmp_path / "cache",
    )
    return Workshop(store=store, work_root=tmp_path / "work", python=Path(sys.executable))


@pytest.fixture
def stored(s3: Any) -> Callable[[], set[str]]:
    """The keys in the bucket."""

    def list_keys() -> set[str]:
        answer = s3.client.list_objects_v2(Bucket=s3.bucket)
        return {item["Key"] for item in answer.get("Contents", [])}

    return list_keys
