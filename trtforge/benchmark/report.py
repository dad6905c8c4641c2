"""The report of one measurement: what the benchmark stage keeps, and the gates' evidence."""

from pydantic import Field, JsonValue

from trtforge.benchmark.metrics import Measurement
from trtforge.store.records import Record


class BenchmarkReport(Record):
    """`report.json` of a benchmark stage.

    Attributes:
        machine: What measured (`trtforge.benchmark.machine`).
        formulas: How each number is computed.
        engine: The engine's measurements, one per number of requests at once.
        eager: The original model's in PyTorch, in the same order.
        eager_versions: Of what ran the original model.
        correctness: The verdicts on the engine's answers (`trtforge.gates.correctness`).
        own_benchmark: What the toolchain's own benchmark measured on the same requests, with its
            own formulas; None where there is none, or where it failed.
    """

    machine: dict[str, JsonValue]
    formulas: dict[str, str]
    engine: tuple[Measurement, ...]
    eager: tuple[Measurement, ...]
    engine_load_s: float
    eager_load_s: float
    engine_peak_rss_bytes: int
    eager_peak_rss_bytes: int
    eager_versions: dict[str, str]
    correctness: tuple[dict[str, JsonValue], ...]
    own_benchmark: dict[str, JsonValue] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
