"""Transfers survive what happens to networks, servers, disks and processes.

A real S3 server, behind a proxy that drops, delays, truncates and corrupts.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from fault_proxy import Fault, FaultProxy, fault_proxy
from pydantic import SecretStr

from trtforge.errors import ServiceError
from trtforge.files import FileRef
from trtforge.progress import Progress
from trtforge.stack import seaweedfs, service
from trtforge.stack.ports import StackPorts
from trtforge.store import Store
from trtforge.store.client import StoreUnreachableError, Wire, make_client
from trtforge.store.layout import blob_key, run_key
from trtforge.store.transfer import CONNECTIONS, BlobCorruptError

MIB = 1 << 20
PART = 5 * MIB
IMPATIENT = Wire(max_attempts=1, read_timeout_s=2)


@pytest.fixture
def proxy(s3: Any) -> Iterator[FaultProxy]:
    port = urlsplit(s3.endpoint_url).port
    assert port is not None
    with fault_proxy(port) as proxy:
        yield proxy


def open_store(s3: Any, endpoint_url: str, cache_dir: Path, wire: Wire = IMPATIENT) -> Store:
    client = make_client(
        endpoint_url=endpoint_url,
        access_key_id=s3.access_key_id,
        secret_access_key=SecretStr(s3.secret_access_key),
        wire=wire,
    )
    return Store(client, s3.bucket, cache_dir, part_bytes=PART)


@pytest.fixture
def store(s3: Any, proxy: FaultProxy, tmp_path: Path) -> Store:
    """A store behind the proxy."""
    store = open_store(s3, proxy.endpoint_url, tmp_path / "cache")
    store.bucket.patience_s = 20
    return store


def write(path: Path, size_bytes: int) -> FileRef:
    state, left = hashlib.sha256(), size_bytes
    with path.open("wb") as stream:
        while left:
            block = os.urandom(min(left, 16 * MIB))
            stream.write(block)
            state.update(block)
            left -= len(block)
    return FileRef(path.name, size_bytes, state.hexdigest())


def stored(s3: Any, ref: FileRef) -> str:
    """The digest of what the server holds under the blob's name."""
    body = s3.client.get_object(Bucket=s3.bucket, Key=blob_key(ref.sha256))["Body"]
    return hashlib.sha256(body.read()).hexdigest()


def visible(s3: Any) -> list[str]:
    listed = s3.client.list_objects_v2(Bucket=s3.bucket).get("Contents", [])
    return [item["Key"] for item in listed]


FAULTS = [
    Fault("drop", at=300_000),
    Fault("truncate", at=300_001),
    Fault("corrupt", at=300_002),
    # Longer than the client waits for an answer.
    Fault("delay", delay_s=2.5),
    Fault("answer", status=503),
    Fault("answer", status=500),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}{fault.status}")
@pytest.mark.parametrize("size_bytes", [MIB, 17 * MIB])
def test_an_upload_survives_a_fault(
    s3: Any, proxy: FaultProxy, store: Store, tmp_path: Path, fault: Fault, size_bytes: int
) -> None:
    ref = write(tmp_path / "engine", size_bytes)
    least = min(size_bytes, PART)
    proxy.requests.extend(
        Fault(fault.kind, "PUT", fault.at, least, fault.delay_s, fault.status) for _ in range(2)
    )
    seen: list[Progress] = []
    assert store.put_file(tmp_path / "engine", ref, seen.append)
    assert not proxy.requests
    assert stored(s3, ref) == ref.sha256
    assert seen[-1].done == size_bytes


@pytest.mark.parametrize("fault", FAULTS[:4], ids=lambda fault: fault.kind)
def test_a_download_survives_a_fault(
    proxy: FaultProxy, store: Store, tmp_path: Path, fault: Fault
) -> None:
    ref = write(tmp_path / "engine", 17 * MIB)
    store.put_file(tmp_path / "engine", ref)
    proxy.responses.extend(
        Fault(fault.kind, "GET", fault.at, PART, fault.delay_s) for _ in range(2)
    )
    proxy.requests.append(Fault("answer", "GET", status=503, words="/blobs/"))
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert not proxy.requests
    assert not proxy.responses
    assert (tmp_path / "back").read_bytes() == (tmp_path / "engine").read_bytes()


def test_ranges_damaged_in_every_pass_are_fetched_until_two_fetches_agree(
    proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    ref = write(tmp_path / "engine", 17 * MIB)
    store.put_file(tmp_path / "engine", ref)
    # Four ranges a pass: one damaged in the first pass, two in the second.
    proxy.responses.extend(
        [
            Fault("corrupt", "GET", 7, PART),
            *[Fault("delay", "GET", 0, MIB) for _ in range(3)],
            *[Fault("corrupt", "GET", at, MIB) for at in (11, 12)],
        ]
    )
    seen: list[Progress] = []
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back", seen.append)
    assert not proxy.responses
    assert (tmp_path / "back").read_bytes() == (tmp_path / "engine").read_bytes()
    assert seen[-1].done == ref.size_bytes


def test_bytes_that_are_damaged_every_time_are_reported_by_name(
    proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    ref = write(tmp_path / "engine", 12 * MIB)
    store.put_file(tmp_path / "engine", ref)
    proxy.responses.extend(Fault("corrupt", "GET", at, MIB) for at in range(200))
    with pytest.raises(BlobCorruptError, match=ref.sha256):
        store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_an_answer_that_is_lost_does_no_harm(
    s3: Any, proxy: FaultProxy, store: Store, tmp_path: Path, method: str
) -> None:
    """Also when what was asked for has been done: the upload is complete, but nobody was told."""
    ref = write(tmp_path / "engine", 12 * MIB)
    lost = {"PUT": "partNumber=2", "POST": "uploadId="}[method]
    proxy.responses.append(Fault("truncate", method, 10, 11, words=lost))
    proxy.requests.append(Fault("drop", "PUT", 40_000, PART))
    assert store.put_file(tmp_path / "engine", ref)
    assert stored(s3, ref) == ref.sha256


def test_a_service_that_stays_away_is_named(
    s3: Any, proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    ref = write(tmp_path / "engine", 12 * MIB)
    store.blobs.has(ref)
    store.bucket.patience_s = 1
    proxy.requests.extend(Fault("drop", "PUT", 5, MIB) for _ in range(1000))
    with pytest.raises(StoreUnreachableError, match="no answer from the object storage"):
        store.put_file(tmp_path / "engine", ref)
    proxy.requests.clear()
    assert visible(s3) == []
    store.put_file(tmp_path / "engine", ref)
    proxy.responses.extend(Fault("truncate", "GET", 5, MIB) for _ in range(1000))
    with pytest.raises(StoreUnreachableError):
        store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    proxy.responses.clear()
    store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "engine").read_bytes()


RECORDS: dict[str, Callable[[Store], object]] = {
    "PUT": lambda store: store.put_run_file("a-run", "report", b"new"),
    "GET": lambda store: store.get_run_file("a-run", "report"),
    "HEAD": lambda store: store.bucket.head(run_key("a-run", "report")),
    "DELETE": lambda store: store.bucket.delete(run_key("a-run", "report")),
    "PUT if": lambda store: store.bucket.put_if_absent(run_key("a-run", "other"), b"new"),
    "GET list": lambda store: list(store.bucket.keys("runs/")),
}


@pytest.mark.parametrize("request_", RECORDS)
def test_a_record_waits_for_a_service_as_a_blob_does(
    proxy: FaultProxy, store: Store, request_: str
) -> None:
    store.put_run_file("a-run", "report", b"old")
    store.probe_conditional_writes()
    method = request_.partition(" ")[0]
    proxy.requests.extend(Fault("answer", method, status=503) for _ in range(2))
    RECORDS[request_](store)
    assert not proxy.requests
    store.bucket.patience_s = 0
    proxy.requests.append(Fault("answer", method, status=503))
    with pytest.raises(ServiceError):
        RECORDS[request_](store)


def test_a_report_that_breaks_off_on_its_way_is_read_again(proxy: FaultProxy, store: Store) -> None:
    store.put_run_file("a-run", "report", b"whole" * 1000)
    proxy.responses.extend(Fault("truncate", "GET", 100, 1000) for _ in range(5))
    assert store.get_run_file("a-run", "report") == b"whole" * 1000


def test_a_service_that_never_answered_is_not_waited_for(proxy: FaultProxy, store: Store) -> None:
    proxy.requests.append(Fault("answer", "HEAD", status=503))
    with pytest.raises(ServiceError):
        store.get_run_file("a-run", "report")
    assert not proxy.requests


def test_the_end_of_a_stage_is_not_held_up_by_a_service_that_is_away(
    proxy: FaultProxy, store: Store
) -> None:
    with store.leases.claimed("compile", "0" * 64, lambda: None):
        proxy.requests.extend(
            Fault("answer", "GET", status=503, words="/leases/") for _ in range(100)
        )
    assert len(proxy.requests) == 99


TRANSFER = """
import os, resource, sys
from pathlib import Path
from pydantic import SecretStr
from trtforge.files import FileRef
from trtforge.store import Store
from trtforge.store.client import make_client

what, endpoint, bucket, cache, path, size, sha256, part = sys.argv[1:]
client = make_client(endpoint_url=endpoint, access_key_id=os.environ["KEY_ID"],
                     secret_access_key=SecretStr(os.environ["SECRET"]))
store = Store(client, bucket, Path(cache), part_bytes=int(part))
print("ready", flush=True)
if what == "upload":
    store.put_file(Path(path), FileRef("engine", int(size), sha256))
else:
    store.get_file(sha256, int(size), Path(path))
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def start(
    s3: Any, what: str, endpoint_url: str, cache: Path, path: Path, ref: FileRef, part: int = PART
) -> "subprocess.Popen[str]":
    """A process that uploads or downloads one file; it says `ready`, then its peak memory."""
    words = [what, endpoint_url, s3.bucket, cache, path, ref.size_bytes, ref.sha256, part]
    child = subprocess.Popen(
        [sys.executable, "-c", TRANSFER, *map(str, words)],
        env=os.environ | {"KEY_ID": s3.access_key_id, "SECRET": s3.secret_access_key},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finish(child: "subprocess.Popen[str]") -> int:
    """Wait for it; its peak memory in bytes."""
    assert child.stdout is not None
    out = child.stdout.read()
    assert child.wait() == 0
    return int(out) * 1024


def kill_when(proxy: FaultProxy, child: "subprocess.Popen[str]", method: str, count: int) -> None:
    """Kill -9 when `count` more requests of a kind about blobs have begun."""
    reached = threading.Event()
    left = [count]

    def watch(line: str) -> None:
        if line.startswith(method) and "/blobs/" in line:
            left[0] -= 1
            if left[0] <= 0:
                reached.set()

    proxy.on_request = watch
    while not reached.wait(0.005) and child.poll() is None:
        pass
    time.sleep(random.uniform(0, 0.05))
    child.send_signal(signal.SIGKILL)
    child.wait()
    proxy.on_request = lambda _: None


def listed_part_bytes(s3: Any, ref: FileRef) -> int:
    """How many bytes of unfinished uploads of a blob the server holds.

    A part that two processes sent is listed twice by SeaweedFS, and counts once.
    """
    key, total = blob_key(ref.sha256), 0
    found = s3.client.list_multipart_uploads(Bucket=s3.bucket, Prefix=key).get("Uploads", [])
    for upload in found:
        about = {"Bucket": s3.bucket, "Key": key, "UploadId": upload["UploadId"]}
        parts = s3.client.list_parts(**about).get("Parts", [])
        total += sum({part["PartNumber"]: part["Size"] for part in parts}.values())
    return total


@pytest.mark.parametrize(
    "kills", [3, pytest.param(20, marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_a_killed_upload_goes_on_with_the_parts_that_are_there(
    s3: Any, proxy: FaultProxy, tmp_path: Path, kills: int
) -> None:
    parts = 4 + 3 * kills
    ref = write(tmp_path / "engine", parts * PART)
    arguments = (s3, "upload", proxy.endpoint_url, tmp_path / "cache", tmp_path / "engine", ref)
    for _ in range(kills):
        kill_when(proxy, start(*arguments), "PUT", random.randint(1, 5))
        assert visible(s3) == [] or stored(s3, ref) == ref.sha256
    held = listed_part_bytes(s3, ref)
    proxy.traffic.body_bytes.clear()
    finish(start(*arguments))
    assert stored(s3, ref) == ref.sha256
    if held:
        # What is there is not sent again; and a part that was under way when it was listed may
        # have arrived since.
        sent = proxy.traffic.body_bytes.get("PUT", 0)
        assert ref.size_bytes - held - CONNECTIONS * PART <= sent <= ref.size_bytes - held


def test_bytes_sent_again_after_a_kill_are_less_than_a_part_for_each_connection(
    s3: Any, proxy: FaultProxy, tmp_path: Path
) -> None:
    ref = write(tmp_path / "engine", 12 * PART)
    arguments = (s3, "upload", proxy.endpoint_url, tmp_path / "cache", tmp_path / "engine", ref)
    kill_when(proxy, start(*arguments), "PUT", 8)
    begun = sum("partNumber" in line for line in proxy.traffic.requests)
    held = listed_part_bytes(s3, ref)
    assert begun * PART - held <= CONNECTIONS * PART
    finish(start(*arguments))
    assert sum("uploads" in line for line in proxy.traffic.requests if line[:4] == "POST") == 1
    assert stored(s3, ref) == ref.sha256


def test_a_killed_download_goes_on_where_it_was(
    s3: Any, proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    ref = write(tmp_path / "engine", 12 * PART)
    store.put_file(tmp_path / "engine", ref)
    cache = tmp_path / "killed"
    arguments = (s3, "download", proxy.endpoint_url, cache, tmp_path / "back", ref)
    kill_when(proxy, start(*arguments), "GET", 10)
    assert not (tmp_path / "back").exists()
    [partial] = [path for path in cache.rglob("*") if path.is_file()]
    with partial.open("rb") as stream:
        have = os.lseek(stream.fileno(), 0, os.SEEK_HOLE)
    # What lies behind the first hole is less than a range for each connection.
    assert partial.stat().st_size - have < (CONNECTIONS + 1) * PART
    proxy.traffic.requests.clear()
    finish(start(*arguments))
    fetched = sum(line.startswith("GET") and "/blobs/" in line for line in proxy.traffic.requests)
    assert fetched == -(-(ref.size_bytes - have) // PART)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "engine").read_bytes()
    assert [path for path in cache.rglob("*") if path.is_file()] == [cache / blob_key(ref.sha256)]


def test_two_processes_upload_the_same_blob_at_once(s3: Any, tmp_path: Path) -> None:
    ref = write(tmp_path / "engine", 8 * PART)
    both = [
        start(s3, "upload", s3.endpoint_url, tmp_path / name, tmp_path / "engine", ref)
        for name in ("one", "other")
    ]
    for child in both:
        finish(child)
    assert stored(s3, ref) == ref.sha256


def test_two_processes_download_into_one_cache_at_once(
    s3: Any, proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    ref = write(tmp_path / "engine", 8 * PART)
    store.put_file(tmp_path / "engine", ref)
    cache = tmp_path / "shared"
    both = [
        start(s3, "download", proxy.endpoint_url, cache, tmp_path / name, ref)
        for name in ("one", "other")
    ]
    for child in both:
        finish(child)
    for name in ("one", "other"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "engine").read_bytes()
    # Once for both.
    assert sum("GET" in r and "/blobs/" in r for r in proxy.traffic.requests) == 8


def test_memory_does_not_grow_with_the_file(s3: Any, tmp_path: Path) -> None:
    ref = write(tmp_path / "engine", 300 * MIB)
    cache = tmp_path / "cache"
    part = 32 * MIB
    up = start(s3, "upload", s3.endpoint_url, cache, tmp_path / "engine", ref, part)
    assert finish(up) < 400 * MIB
    down = start(s3, "download", s3.endpoint_url, cache, tmp_path / "back", ref, part)
    assert finish(down) < 300 * MIB


@pytest.fixture
def own_server() -> Iterator[tuple[seaweedfs.SeaweedFS, seaweedfs.S3Credentials]]:
    """A server that the test may kill."""
    home = Path(tempfile.mkdtemp(prefix="trtforge-s3-"))
    credentials = seaweedfs.S3Credentials.random()
    server = seaweedfs.SeaweedFS(home, StackPorts.free(), credentials)
    try:
        service.ensure_running(server, lambda _: None)
        yield server, credentials
    finally:
        service.stop(server)
        shutil.rmtree(home, ignore_errors=True)


def test_a_server_that_is_killed_and_started_again_is_waited_for(
    own_server: tuple[seaweedfs.SeaweedFS, seaweedfs.S3Credentials], tmp_path: Path
) -> None:
    server, credentials = own_server
    server.ensure_bucket("engines")
    client = make_client(
        endpoint_url=server.address,
        access_key_id=credentials.access_key_id,
        secret_access_key=SecretStr(credentials.secret_access_key),
    )
    store = Store(client, "engines", tmp_path / "cache", part_bytes=PART)
    ref = write(tmp_path / "engine", 24 * PART)
    restarts: list[threading.Thread] = []

    def restart() -> None:
        leader = server.find()
        assert leader is not None
        for process in [*psutil.Process(leader.pid).children(recursive=True), leader]:
            process.kill()
        service.ensure_running(server, lambda _: None)

    def in_the_middle(progress: Progress) -> None:
        if progress.done > 4 * PART and not restarts:
            restarts.append(threading.Thread(target=restart))
            restarts[0].start()

    for transfer in (
        lambda: store.put_file(tmp_path / "engine", ref, in_the_middle),
        lambda: store.get_file(ref.sha256, ref.size_bytes, tmp_path / "back", in_the_middle),
    ):
        transfer()
        restarts.pop().join()
    assert (tmp_path / "back").read_bytes() == (tmp_path / "engine").read_bytes()
