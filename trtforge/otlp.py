"""The OpenTelemetry SDK behind `trtforge.telemetry`; imported only where a collector is named."""

import atexit
import logging
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int | float | bool]

_SCOPE = "trtforge"
# From a look into the store to a day.
_SECONDS = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
_COUNTERS = {
    "stage.lookups": ("{lookup}", "Stages looked up in the store"),
    "runs": ("{run}", "Flow runs that ended"),
    "store.io": ("By", "Bytes to and from the store"),
    "gpu.time": ("s", "Time that GPUs were held"),
}
_HISTOGRAMS = {
    "stage.duration": "How long stages took to find or make",
    "run.duration": "How long flow runs took",
}
# How long the end of a process waits for a collector that has not failed so far.
_LAST_WAIT_S = 2.0
_log = logging.getLogger("trtforge")


@dataclass(frozen=True)
class CurrentSpan:
    """A span that is open."""

    span: trace.Span

    def failed(self, kind: str, text: str) -> None:
        """Mark it as failed. (The SDK itself would add the traceback, with what secrets it has.)"""
        self.span.set_status(trace.Status(trace.StatusCode.ERROR, text))
        self.span.set_attribute("error.type", kind)


class Exporting:
    """Providers of this process: not the global ones, which belong to whoever set them."""

    def __init__(self) -> None:
        # Their own lines come with every failed try; `_Delivery` tells it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        delivery = _Delivery()
        # Counters add up per process: collectors tell them apart by the instance.
        resource = Resource.create({SERVICE_INSTANCE_ID: str(uuid.uuid4())})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: _SCOPE}))
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(_Spans(delivery))
        self._tracers.add_span_processor(self._processor)
        reader = PeriodicExportingMetricReader(_Metrics(delivery))
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._tracer = self._tracers.get_tracer(_SCOPE)
        meter = self._meters.get_meter(_SCOPE)
        self._counters: dict[str, Counter] = {
            name: meter.create_counter(f"{_SCOPE}.{name}", unit, about)
            for name, (unit, about) in _COUNTERS.items()
        }
        self._histograms: dict[str, Histogram] = {
            name: meter.create_histogram(
                f"{_SCOPE}.{name}", "s", about, explicit_bucket_boundaries_advisory=_SECONDS
            )
            for name, about in _HISTOGRAMS.items()
        }
        self._propagator = TraceContextTextMapPropagator()
        self._delivery = delivery
        self._wanted, self._ending, self._sent = (threading.Event() for _ in range(3))
        # Made now: at the end of the interpreter no thread can be started.
        threading.Thread(target=self._send, name="trtforge-telemetry", daemon=True).start()
        atexit.register(self._end)

    @contextmanager
    def span(self, name: str, attributes: Attributes) -> Iterator[CurrentSpan]:
        """A span below the current one."""
        with self._tracer.start_as_current_span(
            name, attributes=dict(attributes), record_exception=False, set_status_on_exception=False
        ) as current:
            yield CurrentSpan(current)

    def annotate(self, attributes: Attributes) -> None:
        """See `trtforge.telemetry.annotate`."""
        trace.get_current_span().set_attributes(dict(attributes))

    def count(self, name: str, amount: float, attributes: Attributes) -> None:
        """Add to a counter."""
        self._counters[name].add(amount, dict(attributes))

    def measure(self, name: str, seconds: float, attributes: Attributes) -> None:
        """Add one duration to a histogram."""
        self._histograms[name].record(seconds, dict(attributes))

    def traceparent(self) -> str:
        """See `trtforge.telemetry.current_traceparent`."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent", "")

    @contextmanager
    def continued(self, traceparent: str) -> Iterator[None]:
        """See `trtforge.telemetry.continued`."""
        token = context.attach(self._propagator.extract({"traceparent": traceparent}))
        try:
            yield
        finally:
            context.detach(token)

    def hurry(self) -> None:
        """Send what there is now, in the background: a run has ended, and its process may too."""
        self._wanted.set()

    def _send(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            ending = self._ending.is_set()
            self._processor.force_flush()
            self._meters.force_flush()
            if ending:
                self._sent.set()
                return

    def _end(self) -> None:
        self._ending.set()
        self._wanted.set()
        # One that has failed before is not waited for.
        if not self._delivery.failing:
            self._sent.wait(_LAST_WAIT_S)


class _Delivery:
    """Whether the collector takes what it is sent; tells when that changes."""

    def __init__(self) -> None:
        self.failing = False

    def note(self, success: bool, endpoint: str) -> None:
        if success == self.failing:
            self.failing = not success
            if success:
                _log.info("the OpenTelemetry collector answers again")
            else:
                _log.warning(
                    "the OpenTelemetry collector at %s does not take what it is sent; the build "
                    "goes on without it",
                    endpoint,
                )


class _Spans(OTLPSpanExporter):
    def __init__(self, delivery: _Delivery) -> None:
        super().__init__()
        self._delivery = delivery

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        self._delivery.note(result is SpanExportResult.SUCCESS, self._endpoint)
        return result


class _Metrics(OTLPMetricExporter):
    def __init__(self, delivery: _Delivery) -> None:
        super().__init__()
        self._delivery = delivery

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: object
    ) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **kwargs)
        self._delivery.note(result is MetricExportResult.SUCCESS, self._endpoint)
        return result
