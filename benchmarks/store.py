"""How fast do engines travel, compared with `aws s3 cp` and plain boto3?

Starts a SeaweedFS of its own in a temporary directory and times, interleaved, whole processes that
send one file of random bytes and fetch it again:

* `aws s3 cp`, if `aws` is on PATH;
* `boto3.client.upload_file` and `download_file` with their defaults;
* `Store.put_file` and `Store.get_file`, which also hash (SHA-256) every byte on both ways, check
  each part, resume, and sync the download to the disk before it gets its name.

Peers leave a download in the page cache; `durable` times add an fsync of the file to theirs.
The file is in the page cache throughout; dirty pages are written back before each measurement.
Then an engine is published of which all but 1 % is in the store already; that time is taken inside
the process. Needs room for about six times the file.

Run: `python benchmarks/store.py --gb 4`. The last line of the output is one JSON object.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3
from pydantic import SecretStr

from trtforge.files import FileRef, describe_directory
from trtforge.stack import seaweedfs, service
from trtforge.stack.ports import StackPorts
from trtforge.store import Manifest, ManifestCore, ModelIdentity, Parents, Store
from trtforge.store.client import make_client
from trtforge.store.layout import blob_key

MIB = 1 << 20
GB = 1_000_000_000
BUCKET = "bench"
PEER_KEY = "peer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=4.0, help="size of the file (default 4)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    with tempfile.TemporaryDirectory(prefix="store-bench-", dir=args.dir) as name:
        work, credentials = Path(name), seaweedfs.S3Credentials.random()
        server = seaweedfs.SeaweedFS(work / "home", StackPorts.free(), credentials)
        (work / "home").mkdir()
        try:
            service.ensure_running(server, lambda _: None)
            server.ensure_bucket(BUCKET)
            os.environ.update(
                AWS_ACCESS_KEY_ID=credentials.access_key_id,
                AWS_SECRET_ACCESS_KEY=credentials.secret_access_key,
                AWS_DEFAULT_REGION=seaweedfs.REGION,
                AWS_EC2_METADATA_DISABLED="true",
            )
            compare(work, server, round(args.gb * GB), args.rounds)
        finally:
            service.stop(server)


def compare(work: Path, server: seaweedfs.SeaweedFS, size_bytes: int, rounds: int) -> None:
    source = work / "engine"
    ref = write_random(source, size_bytes)
    print(f"file: {size_bytes / GB:g} GB; {platform.platform()}, {processor()}")
    print(f"cores: {os.cpu_count()}, load average at the start: {os.getloadavg()[0]:.2f}")
    me = [sys.executable, __file__, "--child"]
    about = [server.address, str(work), str(ref.size_bytes), ref.sha256]
    peer, copy = f"s3://{BUCKET}/{PEER_KEY}", work / "copy"
    tools: dict[str, tuple[list[str], list[str]]] = {
        "boto3": ([*me, "boto3-up", *about], [*me, "boto3-down", *about]),
        "trtforge": ([*me, "up", *about], [*me, "down", *about]),
    }
    aws = shutil.which("aws")
    if aws:
        cp = [aws, "s3", "cp", "--quiet", "--endpoint-url", server.address]
        tools = {"aws s3 cp": ([*cp, str(source), peer], [*cp, peer, str(copy)])} | tools
    else:
        print("`aws` is not on PATH: compared with boto3 only")
    client = server.client()
    ups: dict[str, list[float]] = {tool: [] for tool in tools}
    downs: dict[str, list[float]] = {tool: [] for tool in tools}
    durable: dict[str, list[float]] = {tool: [] for tool in tools}
    peak_bytes = 0
    cpu_s: dict[str, list[float]] = {tool: [] for tool in tools}
    for number in range(rounds):
        # Nobody is always the first, or always after the same other one.
        first = number % len(tools)
        for tool in [*list(tools)[first:], *list(tools)[:first]]:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            up_s, up_peak = timed(tools[tool][0])
            down_s, down_peak = timed(tools[tool][1])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s[tool].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            start_s = time.perf_counter()
            with copy.open("rb") as stream:
                os.fsync(stream.fileno())
            ups[tool].append(up_s)
            downs[tool].append(down_s)
            durable[tool].append(down_s + time.perf_counter() - start_s)
            if tool == "trtforge":
                peak_bytes = max(peak_bytes, up_peak, down_peak)
            for key in (PEER_KEY, blob_key(ref.sha256)):
                client.delete_object(Bucket=BUCKET, Key=key)
            copy.unlink(missing_ok=True)
            shutil.rmtree(work / "cache", ignore_errors=True)
    subprocess.run(tools["trtforge"][0], check=True, capture_output=True)
    republished = json.loads(
        subprocess.run([*me, "republish", *about], check=True, capture_output=True).stdout
    )
    peak_bytes = max(peak_bytes, republished["peak_bytes"])
    for what, times in (("upload", ups), ("download", downs), ("... fsync", durable)):
        for tool, seconds in times.items():
            middle = statistics.median(seconds)
            rate = size_bytes / middle / 1e6
            shown = ", ".join(f"{s:.2f}" for s in seconds)
            print(f"{what:9} {tool:10} {middle:8.2f} s {rate:8.0f} MB/s   ({shown})")
    for tool, seconds in cpu_s.items():
        print(f"{'CPU':9} {tool:10} {statistics.median(seconds):8.2f} s for both ways")
    result = {
        "upload_over_best": over_best(ups),
        "download_over_best": over_best(downs),
        "durable_download_over_best": over_best(durable),
        "peak_rss_mb": round(peak_bytes / 1e6),
        "republish_s": round(republished["seconds"], 2),
        "size_bytes": size_bytes,
        "rounds": rounds,
        "peers": [tool for tool in tools if tool != "trtforge"],
    }
    print(json.dumps(result))


def over_best(times: dict[str, list[float]]) -> float:
    """Our median over the median of the quicker peer."""
    medians = {tool: statistics.median(seconds) for tool, seconds in times.items()}
    return round(medians.pop("trtforge") / min(medians.values()), 3)


def timed(command: list[str]) -> tuple[float, int]:
    """Wall time of a process in seconds, and the peak memory that it tells, in bytes."""
    os.sync()
    start_s = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start_s
    return seconds, json.loads(done.stdout)["peak_bytes"] if done.stdout.strip() else 0


def child(what: str, endpoint_url: str, work: str, size_bytes: str, sha256: str) -> dict[str, Any]:
    """One transfer, in a process of its own."""
    source, copy, ref = (
        Path(work, "engine"),
        Path(work, "copy"),
        FileRef("engine", int(size_bytes), sha256),
    )
    seconds = 0.0
    if what in {"boto3-up", "boto3-down"}:
        client = boto3.client("s3", endpoint_url=endpoint_url)
        if what == "boto3-up":
            client.upload_file(str(source), BUCKET, PEER_KEY)
        else:
            client.download_file(BUCKET, PEER_KEY, str(copy))
    else:
        client = make_client(
            endpoint_url=endpoint_url,
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=SecretStr(os.environ["AWS_SECRET_ACCESS_KEY"]),
        )
        store = Store(client, BUCKET, Path(work, "cache"))
        if what == "up":
            store.put_file(source, ref)
        elif what == "down":
            store.get_file(ref.sha256, ref.size_bytes, copy)
        else:
            seconds = republish(store, Path(work), ref)
    return {"seconds": seconds, "peak_bytes": peak_bytes()}


def republish(store: Store, work: Path, ref: FileRef) -> float:
    """Publish an engine whose largest file is in the store; 1 % of its bytes are new. Seconds."""
    directory = work / "engine-with-news"
    directory.mkdir()
    (directory / ref.path).hardlink_to(work / "engine")
    write_random(directory / "news", ref.size_bytes // 100)
    files = [*describe_directory(directory, ["news"]), ref]
    core = ManifestCore(
        model=ModelIdentity(
            name="org/model",
            source="hf://org/model",
            revision=None,
            content_digest="1" * 64,
            licence=None,
        ),
        spec={},
        config={},
        toolchain={"backend": "aoti", "gpu": "CPU"},
        files=tuple(files),
        parents=Parents(source="2" * 64, checkpoint="3" * 64),
        gates={},
    )
    manifest = Manifest.of(core, timings={})
    start_s = time.perf_counter()
    store.publish(manifest, directory)
    return time.perf_counter() - start_s


def write_random(path: Path, size_bytes: int) -> FileRef:
    state, left = hashlib.sha256(), size_bytes
    with path.open("wb") as stream:
        while left:
            block = os.urandom(min(left, 16 * MIB))
            stream.write(block)
            state.update(block)
            left -= len(block)
    return FileRef(path.name, size_bytes, state.hexdigest())


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


if __name__ == "__main__":
    main()
