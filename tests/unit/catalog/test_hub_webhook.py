"""examples/hub_webhook.py: from the Hub's webhook to the sources that have changed."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

_EXAMPLE = Path(__file__).parents[3] / "examples" / "hub_webhook.py"
_SECRET = "a webhook's secret"
PAYLOAD: dict[str, Any] = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": "acme/alpha", "headSha": "1" * 40},
    "updatedRefs": [
        {"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": "1" * 40},
        {"ref": "refs/tags/v1", "oldSha": None, "newSha": "1" * 40},
        {"ref": "refs/heads/old", "oldSha": "0" * 40, "newSha": None},
    ],
}


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("hub_webhook", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def url(example: Any, told: list[str]) -> Iterator[str]:
    def tell(source: str) -> None:
        if source.startswith("hf://acme/broken"):
            raise OSError("no answer")
        told.append(source)

    server = example.make_server(("127.0.0.1", 0), _SECRET, tell)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def post(url: str, body: object, secret: str = _SECRET) -> int:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url, content=content, headers={"X-Webhook-Secret": secret}).status_code


def test_new_files_on_a_branch_are_told(url: str, told: list[str]) -> None:
    assert post(url, PAYLOAD) == 204
    assert told == ["hf://acme/alpha@main"]


def test_who_does_not_know_the_secret_is_refused(url: str, told: list[str]) -> None:
    assert post(url, PAYLOAD, secret="guessed") == 401
    assert told == []


@pytest.mark.parametrize(
    "other",
    [
        {"event": {"action": "create", "scope": "discussion.comment"}},
        {"repo": {"type": "dataset", "name": "acme/data"}},
        {"updatedRefs": []},
    ],
)
def test_what_changes_no_weights_is_told_to_nobody(
    url: str, told: list[str], other: dict[str, Any]
) -> None:
    assert post(url, PAYLOAD | other) == 204
    assert told == []


@pytest.mark.parametrize("body", [b"not json", b"[]", b""])
def test_what_no_hub_sends_is_refused(url: str, body: bytes) -> None:
    assert post(url, body) == 400


def test_a_server_that_was_not_told_makes_the_hub_show_a_failure(url: str) -> None:
    assert post(url, PAYLOAD | {"repo": {"type": "model", "name": "acme/broken"}}) == 503
