"""A real, tiny OTLP/HTTP collector: takes protobuf over HTTP and keeps what it was sent."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """What arrived. Points of a metric are the last that were sent, by their attributes."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)
    points: dict[tuple[str, tuple[tuple[str, Any], ...]], Any] = field(default_factory=dict)

    def span(self, name: str) -> Span:
        """The only span of this name."""
        [found] = [span for span in self.spans if span.name == name]
        return found

    def metric(self, name: str, **attributes: Any) -> Any:
        """The point of a metric that has these attributes; its value, or the histogram itself."""
        point = self.points[(name, tuple(sorted(attributes.items())))]
        if hasattr(point, "explicit_bounds"):
            return point
        return point.as_double or point.as_int

    def take(self, path: str, body: bytes) -> bytes:
        if path == "/v1/traces":
            trace = ExportTraceServiceRequest.FromString(body)
            for resource in trace.resource_spans:
                self.services.add(attributes(resource.resource.attributes)["service.name"])
                for scope in resource.scope_spans:
                    self.spans += scope.spans
            return bytes(ExportTraceServiceResponse().SerializeToString())
        metrics = ExportMetricsServiceRequest.FromString(body)
        for resource in metrics.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = getattr(metric, metric.WhichOneof("data"))
                    for point in data.data_points:
                        labels = tuple(sorted(attributes(point.attributes).items()))
                        self.points[(metric.name, labels)] = point
        return bytes(ExportMetricsServiceResponse().SerializeToString())


def attributes(pairs: Any) -> dict[str, Any]:
    """OTLP's key-value pairs as a dictionary."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port while the block runs."""
    collector = Collector()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            with lock:
                answer = collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
