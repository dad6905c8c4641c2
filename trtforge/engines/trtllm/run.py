"""Run an engine on jobs: the parent's side of `run_driver`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtforge.engines.base import OnLog, RunOutcome
from trtforge.engines.driver_process import DriverFailedError, run_driver
from trtforge.engines.trtllm.probe import named_error
from trtforge.engines.trtllm.versions import public_version, release
from trtforge.errors import BuildError, TrtforgeError
from trtforge.progress import OnProgress

_DRIVER = "trtforge.engines.trtllm.run_driver"
_TIMEOUT_S = 3600.0
_TEARDOWN_S = 60.0
KV_CACHE_FRACTION = 0.9
"""Upstream's own default: of the GPU memory that is free once the weights are loaded."""


class EngineUnusableError(BuildError):
    """The engine directory is incomplete or not what `trtllm-build` writes."""


class EngineVersionError(BuildError):
    """The engine was built by another TensorRT-LLM or TensorRT than would run it."""


class EngineGpuError(BuildError):
    """The engine was built on another type of GPU than would run it."""


class RequestTooLargeError(BuildError):
    """A request does not fit the engine's limits, or its vocabulary."""


class GpuMemoryError(BuildError):
    """The GPU ran out of memory while the engine was loaded or ran."""


class HostMemoryError(BuildError):
    """The kernel killed the process that ran the engine."""


class TooFewGpusError(BuildError):
    """The engine has more ranks than there are GPUs."""


class MpiError(BuildError):
    """The ranks could not be started, or one of them ended the others."""


class NoLogitsError(BuildError):
    """The engine gives no logits, which correctness is judged by."""


class RuntimeBrokenError(BuildError):
    """The environment lacks something the runtime needs: a library, a driver."""


RUN_ERRORS: Mapping[str, type[TrtforgeError]] = {
    "no-engine": EngineUnusableError,
    "broken-engine": EngineUnusableError,
    "incomplete-engine": EngineUnusableError,
    "wrong-engine-version": EngineVersionError,
    "wrong-tensorrt": EngineVersionError,
    "wrong-gpu": EngineGpuError,
    "batch-too-large": RequestTooLargeError,
    "prompt-too-long": RequestTooLargeError,
    "sequence-too-long": RequestTooLargeError,
    "empty-prompt": RequestTooLargeError,
    "token-id-too-large": RequestTooLargeError,
    "gpu-out-of-memory": GpuMemoryError,
    "killed": HostMemoryError,
    "too-few-gpus": TooFewGpusError,
    "no-gpu": TooFewGpusError,
    "wrong-world-size": MpiError,
    "mpi": MpiError,
    "no-mpirun": MpiError,
    "no-logits": NoLogitsError,
    "driver-too-old": RuntimeBrokenError,
    "missing-library": RuntimeBrokenError,
}


def run_engine(
    python: Path,
    version: str,
    *,
    engine_dir: Path,
    jobs: Sequence[dict[str, Any]],
    logits_dir: Path,
    work_dir: Path,
    on_progress: OnProgress,
    on_log: OnLog,
    kv_cache_fraction: float = KV_CACHE_FRACTION,
    timeout_s: float = _TIMEOUT_S,
) -> RunOutcome:
    """Perform jobs (`trtforge.engines.jobs`); `version` is the release `python` has.

    Raises:
        BuildError: One subclass per cause, see above, or a driver error.
    """
    result = run_for_facts(
        python,
        version,
        engine_dir=engine_dir,
        jobs=jobs,
        logits_dir=logits_dir,
        work_dir=work_dir,
        on_progress=on_progress,
        on_log=on_log,
        kv_cache_fraction=kv_cache_fraction,
        timeout_s=timeout_s,
    )
    return RunOutcome(
        load_s=result["load_s"],
        outputs=tuple(result["outputs"]),
        peak_rss_bytes=result["peak_rss_bytes"],
        versions={"tensorrt_llm": version},
    )


def run_for_facts(
    python: Path,
    version: str,
    *,
    engine_dir: Path,
    jobs: Sequence[dict[str, Any]],
    logits_dir: Path,
    work_dir: Path,
    on_progress: OnProgress,
    on_log: OnLog,
    kv_cache_fraction: float = KV_CACHE_FRACTION,
    timeout_s: float = _TIMEOUT_S,
    teardown_s: float = _TEARDOWN_S,
) -> dict[str, Any]:
    """As `run_engine`, with all that the driver tells: `peak_gpu_bytes` and `warnings` too.

    Args:
        teardown_s: How long the runtime may take to end itself once everything is measured.
    """
    number = public_version(version)
    try:
        return run_driver(
            _DRIVER,
            {
                "engine_dir": str(engine_dir.resolve()),
                "version": number,
                "api": "LLM" if release(number).llm_api.endswith("LLM") else "ModelRunnerCpp",
                "jobs": list(jobs),
                "logits_dir": str(logits_dir.resolve()),
                "kv_cache_fraction": kv_cache_fraction,
                "teardown_s": teardown_s,
            },
            work_dir=work_dir,
            timeout_s=timeout_s,
            python=python,
            on_progress=on_progress,
            on_log=on_log,
        )
    except DriverFailedError as error:
        raise named_error(error, RUN_ERRORS) from error
