"""NVIDIA's own benchmark of an engine, beside ours: the parent's side of `bench_driver`.

Its report is kept as it is (`trtllm-bench-<mode>.json`); the headline numbers become facts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trtforge.engines.base import OnLog
from trtforge.engines.driver_process import DriverFailedError, run_driver
from trtforge.engines.trtllm.probe import named_error
from trtforge.engines.trtllm.run import KV_CACHE_FRACTION, RUN_ERRORS
from trtforge.engines.trtllm.versions import public_version
from trtforge.errors import BuildError, TrtforgeError
from trtforge.progress import OnProgress, ignore

_DRIVER = "trtforge.engines.trtllm.bench_driver"
_TIMEOUT_S = 3600.0
Mode = Literal["throughput", "latency"]


class BenchToolMissingError(BuildError):
    """The environment has no `trtllm-bench`."""


class BenchReportError(BuildError):
    """`trtllm-bench` ended well but left no report that can be read."""


class BenchUnsuitableError(BuildError):
    """This release's `trtllm-bench` cannot measure this engine, or must not read this model."""


_ERRORS: Mapping[str, type[TrtforgeError]] = {
    **RUN_ERRORS,
    "no-trtllm-bench": BenchToolMissingError,
    "bad-bench-report": BenchReportError,
    "bench-batch-of-one": BenchUnsuitableError,
    "remote-code": BenchUnsuitableError,
}


@dataclass(frozen=True)
class BenchReport:
    """What `trtllm-bench` measured.

    Attributes:
        headline: Numbers under names with units (`output_tokens_per_s`, `avg_ttft_s`, …); None
            where the release does not report one. They are upstream's, with upstream's formulas:
            TPOT is per request, over all but its first token.
        report: Name of the JSON report in `out_dir`; None for 0.16, which writes none.
        command: As it was run.
    """

    mode: Mode
    headline: dict[str, float | None]
    report: str | None
    command: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "command": list(self.command)}


def run_trtllm_bench(
    python: Path,
    version: str,
    *,
    engine_dir: Path,
    model_dir: Path,
    model_name: str,
    requests: Sequence[Mapping[str, Any]],
    out_dir: Path,
    work_dir: Path,
    mode: Mode = "throughput",
    concurrency: int = 0,
    warmup: int = 2,
    kv_cache_fraction: float = KV_CACHE_FRACTION,
    timeout_s: float = _TIMEOUT_S,
    on_progress: OnProgress = ignore,
    on_log: OnLog = lambda _line: None,
) -> BenchReport:
    """Measure an engine with the release's own tool.

    Args:
        model_dir: Hugging Face files: config.json and the tokenizer are read, no weights.
        requests: `{"input_ids": [...], "output_tokens": n}`; see `requests_of_jobs`.
        out_dir: Where the report goes; an existing directory.
        concurrency: Requests at once; 0 is no limit. 0.16 knows no limit.

    Raises:
        BuildError: One subclass per cause, see above and `trtforge.engines.trtllm.run`.
    """
    try:
        result = run_driver(
            _DRIVER,
            {
                "version": public_version(version),
                "mode": mode,
                "engine_dir": str(engine_dir.resolve()),
                "model_dir": str(model_dir.resolve()),
                "model_name": model_name,
                "requests": [dict(request) for request in requests],
                "concurrency": concurrency,
                "warmup": warmup,
                "kv_cache_fraction": kv_cache_fraction,
                "report_path": str(out_dir.resolve() / f"trtllm-bench-{mode}.json"),
            },
            work_dir=work_dir,
            timeout_s=timeout_s,
            python=python,
            on_progress=on_progress,
            on_log=on_log,
        )
    except DriverFailedError as error:
        raise named_error(error, _ERRORS) from error
    return BenchReport(mode, result["headline"], result["report"], tuple(result["command"]))


def requests_of_jobs(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The prompts of our benchmark's jobs (`trtforge.engines.jobs`) as a dataset."""
    return [
        {"input_ids": list(prompt), "output_tokens": job["max_new_tokens"]}
        for job in jobs
        for prompt in job["prompts"]
    ]
