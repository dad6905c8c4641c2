"""How long does it take to plan a catalogue of 50 models on 3 GPU types against a warm store?

Starts a SeaweedFS and a small Hub of its own, fills the store with the records of every engine as
builds leave them (a few bytes each: planning reads records, not weights), and times
`plan_catalog`, which resolves every source at the Hub, too:

* nothing changed: every cell must be up to date;
* new weights for one model, and a new driver on one GPU type: exactly those cells must be changed.

Every plan is a new process's first: nothing of an earlier one is remembered.

Run: `python benchmarks/catalog.py`. The last line of the output is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hub_server import HubServer
from prebuilt import prebuild, sight, tiny_weights, toolchain_of
from pydantic import SecretStr

from trtforge.catalog import parse_catalog, plan_catalog
from trtforge.stack import seaweedfs, service
from trtforge.stack.ports import StackPorts
from trtforge.stages.stage import Workshop
from trtforge.store import Store
from trtforge.store.client import make_client
from trtforge.store.records import now

BUCKET = "bench"
GPUS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200", "l4": "NVIDIA L4"}


@dataclass(frozen=True)
class Place:
    """Where the bucket is."""

    endpoint_url: str
    credentials: seaweedfs.S3Credentials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="catalog-bench-") as name, HubServer() as hub:
        work, credentials = Path(name), seaweedfs.S3Credentials.random()
        os.environ["HF_ENDPOINT"] = hub.endpoint
        server = seaweedfs.SeaweedFS(work / "home", StackPorts.free(), credentials)
        (work / "home").mkdir()
        try:
            service.ensure_running(server, lambda _: None)
            server.ensure_bucket(BUCKET)
            measure(work, Place(server.address, credentials), hub, args.models, args.rounds)
        finally:
            service.stop(server)


def measure(work: Path, place: Place, hub: HubServer, models: int, rounds: int) -> None:
    data = catalogue(models)
    catalog, cells = parse_catalog(data)
    toolchains = {gpu: toolchain_of(name) for gpu, name in GPUS.items()}
    shop = open_shop(work, place)
    for index in range(models):
        weights = tiny_weights(work / "weights" / str(index), str(index))
        hub.add_commit(f"bench/m{index}", weights)
    for gpu in GPUS:
        sight(shop, f"gpu-{gpu}", toolchains[gpu])
    started = time.monotonic()
    for cell in cells:
        prebuild(shop, cell.spec, toolchains[cell.gpu_type])
    objects = sum(1 for _ in shop.store.bucket.keys(""))
    print(f"{len(cells)} cells, {objects} objects, filled in {time.monotonic() - started:.0f} s")

    def planned() -> tuple[float, Counter[str], int]:
        shop = open_shop(work, place)
        sent: list[str] = []
        shop.store.bucket.client.meta.events.register(
            "before-send.s3", lambda request, **_: sent.append(request.method)
        )
        started = time.monotonic()
        plans = plan_catalog(shop, catalog, cells, now())
        seconds = time.monotonic() - started
        writes = sum(method not in ("GET", "HEAD") for method in sent)
        assert not writes, f"planning wrote {writes} times"
        return seconds, Counter(plan.status for plan in plans), len(sent)

    times, requests = [], 0
    for number in range(rounds):
        seconds, states, requests = planned()
        assert states == {"up to date": len(cells)}, states
        times.append(seconds)
        print(f"nothing changed, round {number + 1}: {seconds:.2f} s, {requests} requests to S3")
    hub.add_commit("bench/m0", tiny_weights(work / "weights" / "new", "new"))
    sight(shop, "gpu-l4", replace(toolchains["l4"], driver_version="590.10"))
    seconds, states, _ = planned()
    expected = models + len(GPUS) - 1
    assert states == {"changed": expected, "up to date": len(cells) - expected}, states
    print(f"new weights of one model, new driver on one GPU type: {seconds:.2f} s, {states}")
    result = {
        "cells": len(cells),
        "plan_s": round(statistics.median(times), 2),
        "plan_changed_s": round(seconds, 2),
        "s3_requests": requests,
        "changed_cells": states["changed"],
        "expected_changed_cells": expected,
        "writes": 0,
        "under_10_s": max(*times, seconds) < 10,
    }
    print(json.dumps(result))


def catalogue(models: int) -> dict[str, Any]:
    return {
        "gpus": {gpu: {"pool": f"gpu-{gpu}", "gpu_name": name} for gpu, name in GPUS.items()},
        "profiles": {"p": {}},
        "models": [
            {
                "name": f"m{index}",
                "source": f"hf://bench/m{index}",
                "gpus": list(GPUS),
                "profiles": ["p"],
            }
            for index in range(models)
        ],
    }


def open_shop(work: Path, place: Place) -> Workshop:
    client = make_client(
        endpoint_url=place.endpoint_url,
        access_key_id=place.credentials.access_key_id,
        secret_access_key=SecretStr(place.credentials.secret_access_key),
    )
    (work / "work").mkdir(exist_ok=True)
    store = Store(client, BUCKET, work / "cache")
    return Workshop(store=store, work_root=work / "work", python=Path(sys.executable))


if __name__ == "__main__":
    main()
