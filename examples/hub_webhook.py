"""Receives webhooks of the Hugging Face Hub, and tells Prefect which weights have changed.

    HUB_WEBHOOK_SECRET=… python examples/hub_webhook.py --port 8088

Needs what `trtforge` needs to reach the Prefect server. Put a proxy with TLS in front of it. See
docs/catalogue.md, and https://huggingface.co/docs/hub/webhooks for what the Hub sends.
"""

import argparse
import hmac
import json
import os
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOST_BYTES = 1 << 20


def changed_sources(payload: Any) -> list[str]:
    """`hf://org/name@branch` for each branch of a model that has new files."""
    repo, event = payload.get("repo") or {}, payload.get("event") or {}
    if repo.get("type") != "model" or event.get("scope") != "repo.content":
        return []
    branches = [
        ref["ref"].removeprefix("refs/heads/")
        for ref in payload.get("updatedRefs") or []
        if ref.get("newSha") and str(ref.get("ref", "")).startswith("refs/heads/")
    ]
    return [f"hf://{repo['name']}@{branch}" for branch in branches]


def make_server(
    address: tuple[str, int], secret: str, tell: Callable[[str], object]
) -> ThreadingHTTPServer:
    """A server that calls `tell` with every changed source.

    Answers 401 without the secret, 400 to what is no JSON, and 503 when `tell` fails: the Hub
    shows failed deliveries, and they can be sent again there.
    """

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = self.headers.get("X-Webhook-Secret", "")
            if not hmac.compare_digest(given.encode(), secret.encode()):
                self.send_error(401)
                return
            try:
                length = int(self.headers.get("Content-Length", "0"))
                payload = json.loads(self.rfile.read(min(length, _MOST_BYTES)))
                sources = changed_sources(payload)
            except (ValueError, KeyError, TypeError, AttributeError):
                self.send_error(400)
                return
            try:
                for source in sources:
                    tell(source)
            except Exception as error:
                self.log_error("Prefect was not told of %s: %s", sources, error)
                self.send_error(503)
                return
            self.send_response(204)
            self.end_headers()

    return ThreadingHTTPServer(address, Receiver)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8088)
    args = parser.parse_args()
    secret = os.environ.get("HUB_WEBHOOK_SECRET", "")
    if not secret:
        sys.exit("HUB_WEBHOOK_SECRET is empty: set it to the secret that the webhook has")

    from trtforge.settings import load_settings, prefect_environment

    os.environ.update(prefect_environment(load_settings()))
    from tasks.catalog_event import emit_weights_changed

    make_server((args.host, args.port), secret, emit_weights_changed).serve_forever()


if __name__ == "__main__":
    main()
