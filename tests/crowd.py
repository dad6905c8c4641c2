"""Publishers as processes: many at once, and some that are killed. Run as a script.

    crowd.py publish PROCESSES ROUNDS      each publishes and promotes, all at the same time
    crowd.py kill TIMES SEED               one publisher after the other, killed at a random moment

Where the bucket is, it reads as one JSON object from standard input. Every publisher is forked
from this process, which has imported everything and made the client but has no thread and no
connection: so a crowd takes a second and not a minute.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from trtforge.files import describe_directory
from trtforge.store import AliasName, Manifest, ManifestCore, ModelIdentity, Parents, Store
from trtforge.store.client import S3Client, make_client

PART_BYTES = 5 << 20
LATEST = AliasName("org/crowd", "cpu", "aoti", "latest")


def connect(place: dict[str, Any]) -> S3Client:
    return make_client(
        endpoint_url=place["endpoint_url"],
        access_key_id=place["access_key_id"],
        secret_access_key=SecretStr(place["secret_access_key"]),
    )


def open_store(place: dict[str, Any], cache_dir: Path, client: S3Client | None = None) -> Store:
    client = client or connect(place)
    return Store(client, place["bucket"], cache_dir, part_bytes=PART_BYTES)


def publish(store: Store, scratch: Path, name: str, by: str, *, large_bytes: int = 0) -> str:
    """Publish an engine with bytes of its own and some that all share, then point LATEST at it."""
    directory = scratch / hashlib.sha256(name.encode()).hexdigest()[:16]
    (directory / "tokenizer").mkdir(parents=True, exist_ok=True)
    (directory / "rank0.engine").write_bytes(name.encode() * 100)
    (directory / "model.cache").write_bytes(hashlib.sha256(name.encode()).digest())
    (directory / "tokenizer" / "vocab.json").write_bytes(b"shared by all" * 50)
    if large_bytes:
        block = hashlib.sha512(name.encode()).digest() * 1024
        data = (block * (large_bytes // len(block) + 1))[:large_bytes]
        (directory / "rank1.engine").write_bytes(data)
    core = ManifestCore(
        model=ModelIdentity(
            name="org/crowd",
            source="hf://org/crowd",
            revision="0" * 40,
            content_digest="1" * 64,
            licence=None,
        ),
        spec={"name": name},
        config={},
        toolchain={"backend": "aoti", "gpu_name": None, "cpu": "any"},
        files=tuple(describe_directory(directory)),
        parents=Parents(source="2" * 64, checkpoint="3" * 64),
        gates={},
    )
    manifest = store.publish(Manifest.of(core), directory)
    store.set_alias(LATEST, manifest.engine_id, by=by)
    return manifest.engine_id


def forked(work: Callable[[], None]) -> int:
    """Do `work` in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def publish_all(place: dict[str, Any], scratch: Path, processes: int, rounds: int) -> None:
    client = connect(place)

    def work(index: int) -> None:
        store = open_store(place, scratch / f"cache-{index}", client)
        for number in range(rounds):
            by = f"process-{index}-{number}"
            # Every other engine is one that all processes publish at once.
            name = f"engine-{number}" if number % 2 else by
            publish(store, scratch / f"made-{index}", name, by)

    children = [forked(lambda index=i: work(index)) for i in range(processes)]
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    if failed:
        sys.exit(f"{len(failed)} of {processes} publishers failed")


def kill_again_and_again(place: dict[str, Any], scratch: Path, times: int, seed: int) -> None:
    chance = random.Random(seed)
    client = connect(place)

    def work(name: str) -> None:
        store = open_store(place, scratch / "cache", client)
        publish(store, scratch / "made", name, name, large_bytes=6 << 20)

    started = time.monotonic()
    os.waitpid(forked(lambda: work("engine-whole")), 0)
    usual_s = time.monotonic() - started
    killed = 0
    for number in range(times):
        name = f"engine-{number}"
        child = forked(lambda name=name: work(name))
        time.sleep(chance.uniform(0, usual_s))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    # Everybody comes back, and gets to the end.
    survivors = [forked(lambda name=f"engine-{n}": work(name)) for n in range(0, times, 4)]
    failed = [child for child in survivors if os.waitpid(child, 0)[1] != 0]
    if failed:
        sys.exit(f"{len(failed)} of {len(survivors)} publishers failed")
    print(json.dumps({"killed": killed}))


def main(what: str, *numbers: str) -> None:
    place = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as scratch:
        work = publish_all if what == "publish" else kill_again_and_again
        work(place, Path(scratch), int(numbers[0]), int(numbers[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
