"""A workshop on a real S3 server, and small catalogues."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from prebuilt import tiny_weights
from pydantic import SecretStr

from trtforge.stages.stage import Workshop
from trtforge.store import Store
from trtforge.store.client import S3Client, make_client


@cache
def _client(endpoint_url: str, access_key_id: str, secret_access_key: str) -> S3Client:
    """Making a client takes boto3 a good part of a second."""
    return make_client(
        endpoint_url=endpoint_url,
        access_key_id=access_key_id,
        secret_access_key=SecretStr(secret_access_key),
    )


@pytest.fixture
def shop(s3: Any, tmp_path: Path) -> Workshop:
    client = _client(s3.endpoint_url, s3.access_key_id, s3.secret_access_key)
    (tmp_path / "work").mkdir()
    store = Store(client, s3.bucket, tmp_path / "cache")
    return Workshop(store=store, work_root=tmp_path / "work", python=Path("/nowhere/python"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that all sources of the test come from."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def make_weights(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the files of a model of that name."""
    return lambda name: tiny_weights(tmp_path / "weights" / name, name)


@pytest.fixture
def data() -> dict[str, Any]:
    """What a small catalogue's file says: two models, two GPU types, one profile."""
    return {
        "gpus": {
            "standin": {"pool": "gpu-standin"},
            "h100": {"pool": "gpu-h100", "gpu_name": "NVIDIA H100 80GB HBM3", "memory_gb": 80},
        },
        "profiles": {"chat": {"engine": {"max_batch_size": 4}}},
        "models": [
            {
                "name": "alpha",
                "source": "hf://acme/alpha",
                "gpus": ["standin", "h100"],
                "profiles": ["chat"],
            },
            {
                "name": "beta",
                "source": "hf://acme/beta",
                "gpus": ["standin"],
                "profiles": ["chat"],
            },
        ],
    }
