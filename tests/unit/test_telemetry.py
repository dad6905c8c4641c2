"""Traces and metrics: what a collector is sent, and that none is needed."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from otlp_collector import Collector, attributes, collecting

TOKEN = "hf_" + "QrStUvWxYzAbCdEfGhIjKlMnOpQrStUvWx"

BUILD = f"""
from trtforge import telemetry
from trtforge.errors import GateError

with telemetry.run_span("build-engine", **{{"trtforge.model": "tiny", "trtforge.none": None}}):
    with telemetry.span("stage pull", **{{"trtforge.stage": "pull"}}):
        telemetry.record_stage("pull", 2.5, "hit")
        telemetry.annotate(**{{"trtforge.hit": True}})
    with telemetry.span("stage compile"):
        telemetry.record_stage("compile", 70.0, "made")
    print(telemetry.current_traceparent())
try:
    with telemetry.run_span("build-engine"), telemetry.gpu_held("H200", 2):
        raise GateError("slower with {TOKEN}", remedy="Look")
except GateError:
    pass
with telemetry.gpu_held(None):
    pass
"""

HALF = """
import sys
from trtforge import telemetry

with telemetry.run_span("gpu-stage", traceparent=sys.argv[1]):
    print(telemetry.current_traceparent())
"""


def run(
    script: str, endpoint: str, *arguments: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    environment = {n: v for n, v in os.environ.items() if not n.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **more},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def built() -> Iterator[tuple[Collector, str]]:
    """What a collector has of two runs of one short process, and the first one's traceparent."""
    with collecting() as collector:
        printed = run(BUILD, collector.endpoint).stdout.strip()
        yield collector, printed


def test_a_stage_is_a_span_below_its_run(built: tuple[Collector, str]) -> None:
    collector, _ = built
    root = next(s for s in collector.spans if s.name == "build-engine" and not s.status.code)
    told = attributes(root.attributes)
    assert told == {"trtforge.flow": "build-engine", "trtforge.model": "tiny"}
    pull = collector.span("stage pull")
    assert pull.parent_span_id == root.span_id
    assert pull.trace_id == root.trace_id
    assert attributes(pull.attributes) == {"trtforge.stage": "pull", "trtforge.hit": True}
    assert collector.services == {"trtforge"}


def test_a_failure_is_told_without_its_secrets(built: tuple[Collector, str]) -> None:
    collector, _ = built
    [failed] = [span for span in collector.spans if span.status.code]
    assert failed.status.message == "slower with ***. Look"
    assert attributes(failed.attributes)["error.type"] == "GateError"
    assert TOKEN.encode() not in b"".join(s.SerializeToString() for s in collector.spans)


def test_metrics_count_stages_runs_and_gpu_seconds(built: tuple[Collector, str]) -> None:
    collector, _ = built
    assert collector.metric("trtforge.stage.lookups", stage="pull", result="hit") == 1
    assert collector.metric("trtforge.stage.lookups", stage="compile", result="miss") == 1
    made = collector.metric("trtforge.stage.duration", stage="compile", outcome="made")
    assert made.sum == 70.0
    assert list(made.explicit_bounds)[-1] == 86400
    for outcome in ("completed", "gate"):
        assert collector.metric("trtforge.runs", flow="build-engine", outcome=outcome) == 1
    assert collector.metric("trtforge.gpu.time", gpu="H200") > 0
    assert [key for key in collector.points if key[0] == "trtforge.gpu.time"] == [
        ("trtforge.gpu.time", (("gpu", "H200"),))
    ]


def test_the_trace_goes_on_in_another_process(built: tuple[Collector, str]) -> None:
    collector, traceparent = built
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", traceparent)
    inner = run(HALF, collector.endpoint, traceparent).stdout.strip()
    half = collector.span("gpu-stage")
    _, trace_id, span_id, _ = traceparent.split("-")
    assert half.trace_id.hex() == trace_id == inner.split("-")[1]
    assert half.parent_span_id.hex() == span_id


@pytest.mark.parametrize("traceparent", ["", "rubbish", "00-0-0-00"])
def test_a_traceparent_that_is_none_begins_a_trace(traceparent: str) -> None:
    with collecting() as collector:
        run(HALF, collector.endpoint, traceparent)
        assert not collector.span("gpu-stage").parent_span_id


def test_the_bytes_of_blobs_are_counted(s3: Any) -> None:
    script = f"""
from trtforge import telemetry
from trtforge.store.client import make_client
from pydantic import SecretStr

client = make_client(endpoint_url={s3.endpoint_url!r}, region="us-east-1",
                     access_key_id={s3.access_key_id!r},
                     secret_access_key=SecretStr({s3.secret_access_key!r}))
telemetry.watch_transfers(client)
telemetry.watch_transfers(client)
client.put_object(Bucket={s3.bucket!r}, Key="x", Body=b"x" * 100_000)
client.get_object(Bucket={s3.bucket!r}, Key="x")["Body"].read()
client.get_object(Bucket={s3.bucket!r}, Key="x", Range="bytes=0-9")["Body"].read()
"""
    with collecting() as collector:
        run(script, collector.endpoint)
        assert 100_000 <= collector.metric("trtforge.store.io", direction="up") < 101_000
        assert collector.metric("trtforge.store.io", direction="down") == 100_010


IDLE = """
import sys
from trtforge import telemetry

with telemetry.run_span("x", traceparent="00-" + 32 * "1" + "-" + 16 * "1" + "-01"):
    with telemetry.span("y"), telemetry.gpu_held("H200"):
        telemetry.record_stage("pull", 1.0, "made")
        telemetry.watch_transfers(None)
    print(repr(telemetry.current_traceparent()), [m for m in sys.modules if "opentelemetry" in m])
"""


@pytest.mark.parametrize("more", [{}, {"OTEL_SDK_DISABLED": "true"}], ids=["unset", "disabled"])
def test_without_a_collector_nothing_is_even_imported(more: dict[str, str]) -> None:
    endpoint = "http://127.0.0.1:1" if more else ""
    assert run(IDLE, endpoint, **more).stdout.strip() == "'' []"


def test_without_the_packages_a_build_goes_on_and_says_what_to_install() -> None:
    blocked = (
        "import sys, logging; logging.basicConfig(); sys.modules['opentelemetry.sdk'] = None\n"
    )
    done = run(blocked + IDLE.replace("telemetry.watch_transfers(None)", ""), "http://127.0.0.1:1")
    assert done.stderr.count("trtforge[otel]") == 1


BUSY = """
import logging, time
logging.basicConfig()
from trtforge import telemetry

for _ in range(50):
    with telemetry.run_span("build-engine"), telemetry.span("stage pull"):
        telemetry.record_stage("pull", 1.0, "made")
print("built")
"""


def test_a_collector_that_never_answers_delays_no_build() -> None:
    """It takes the connection and says nothing; the exporter may wait for it for an hour."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert run(BUSY, endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="3600").stdout == "built\n"


def test_a_collector_that_is_not_there_is_told_once_and_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    script = BUSY + "\ntime.sleep(3)"
    done = run(
        script,
        f"http://127.0.0.1:{port}",
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    assert done.stderr.count("does not take what it is sent") == 1
    assert done.stderr.count("\n") == 1
