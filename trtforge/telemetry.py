"""Traces and metrics of builds, by OpenTelemetry, for those who collect them.

Nothing is imported and nothing is sent unless the environment names a collector that takes
OTLP over HTTP (`OTEL_EXPORTER_OTLP_ENDPOINT`, or one for traces and metrics each) and
`OTEL_SDK_DISABLED` is not set. Everything else is set by OpenTelemetry's own variables: headers,
certificates, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_METRIC_EXPORT_INTERVAL`.
Export happens in threads of its own: a collector that does not answer costs a build nothing.

Instruments (names are fixed; dashboards are built on them):

    trtforge.stage.duration   histogram, s    stage, outcome (hit, made, failed)
    trtforge.stage.lookups    counter         stage, result (hit, miss)
    trtforge.run.duration     histogram, s    flow, outcome (completed, refused, gate, failed)
    trtforge.runs             counter         flow, outcome
    trtforge.store.io         counter, By     direction (up, down)
    trtforge.gpu.time         counter, s      gpu
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from trtforge.errors import GateError, InputError
from trtforge.redaction import redact

if TYPE_CHECKING:
    from trtforge.otlp import Exporting

Attribute = str | int | float | bool | None

_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_log = logging.getLogger("trtforge")
_exporting: "list[Exporting | None]" = []


def asked_for() -> bool:
    """Whether the environment names a collector."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and any(os.environ.get(name) for name in _ENDPOINTS)


@contextmanager
def run_span(flow: str, *, traceparent: str = "", **attributes: Attribute) -> Iterator[None]:
    """The span of one flow run; counts it, with how it ended, when it ends.

    Args:
        flow: Name of the flow.
        traceparent: Of the run that started this one, as `current_traceparent` gave it there.
    """
    exporting = _get()
    if exporting is None:
        yield
        return
    started = time.monotonic()
    outcome = "completed"
    try:
        with continued(traceparent), span(flow, **{"trtforge.flow": flow, **attributes}):
            yield
    except BaseException as error:
        outcome = _outcome(error)
        raise
    finally:
        about = {"flow": flow, "outcome": outcome}
        exporting.count("runs", 1, about)
        exporting.measure("run.duration", time.monotonic() - started, about)
        exporting.hurry()


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[None]:
    """A span below the current one. A failure is told by its class and text, without secrets."""
    exporting = _get()
    if exporting is None:
        yield
        return
    with exporting.span(name, _told(attributes)) as current:
        try:
            yield
        except BaseException as error:
            current.failed(type(error).__name__, redact(str(error)))
            raise


def annotate(**attributes: Attribute) -> None:
    """Add attributes to the current span."""
    exporting = _get()
    if exporting is not None:
        exporting.annotate(_told(attributes))


def current_traceparent() -> str:
    """The current span as a W3C `traceparent`, for `run_span` or `continued` elsewhere; or ''."""
    exporting = _get()
    return exporting.traceparent() if exporting else ""


@contextmanager
def continued(traceparent: str) -> Iterator[None]:
    """Spans of the block are below the span that `traceparent` names; '' and rubbish: no change."""
    exporting = _get()
    with exporting.continued(traceparent) if exporting and traceparent else nullcontext():
        yield


def record_stage(stage: str, seconds: float, outcome: Literal["hit", "made", "failed"]) -> None:
    """How a stage ended, and how long finding, making or failing took."""
    exporting = _get()
    if exporting is None:
        return
    exporting.measure("stage.duration", seconds, {"stage": stage, "outcome": outcome})
    if outcome != "failed":
        result = "hit" if outcome == "hit" else "miss"
        exporting.count("stage.lookups", 1, {"stage": stage, "result": result})


@contextmanager
def gpu_held(gpu: str | None, count: int = 1) -> Iterator[None]:
    """Count the seconds of the block as time of `count` GPUs called `gpu`, however it ends.

    None is a machine without a GPU, whose time is not counted.
    """
    exporting = _get()
    started = time.monotonic()
    try:
        yield
    finally:
        if exporting is not None and gpu:
            exporting.count("gpu.time", count * (time.monotonic() - started), {"gpu": gpu})


def watch_transfers(client: Any) -> None:
    """Count the bytes of blobs that a boto3 S3 client sends and receives, repeats included."""
    exporting = _get()
    if exporting is None:
        return

    def on_send(request: Any, **_: Any) -> None:
        size = request.headers.get("Content-Length")
        if size is not None and request.method == "PUT":
            exporting.count("store.io", int(size), {"direction": "up"})

    def on_received(response_dict: Mapping[str, Any], **_: Any) -> None:
        size = response_dict["headers"].get("content-length")
        if size is not None and response_dict["status_code"] < 300:
            exporting.count("store.io", int(size), {"direction": "down"})

    # Registering twice under one id is once.
    ids = "trtforge-telemetry"
    client.meta.events.register("before-send.s3", on_send, unique_id=ids)
    client.meta.events.register(
        "response-received.s3.GetObject", on_received, unique_id=f"{ids}-down"
    )


def _get() -> "Exporting | None":
    """What exports; made at the first call in a process that is asked to."""
    if not _exporting:
        if not asked_for():
            return None
        _exporting.append(_open())
    return _exporting[0]


def _open() -> "Exporting | None":
    try:
        from trtforge.otlp import Exporting

        return Exporting()
    except ImportError:
        _log.warning(
            "an OpenTelemetry collector is configured, but there is no exporter: "
            "pip install 'trtforge[otel]'"
        )
    except Exception as error:  # such as a certificate that is not there
        _log.warning("nothing is sent to the OpenTelemetry collector: %s", error)
    return None


def _outcome(error: BaseException) -> str:
    if isinstance(error, GateError):
        return "gate"
    return "refused" if isinstance(error, InputError) else "failed"


def _told(attributes: Mapping[str, Attribute]) -> dict[str, str | int | float | bool]:
    return {
        name: redact(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }
