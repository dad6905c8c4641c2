"""The embedded backend: PyTorch AOTInductor, on a CPU or CUDA GPUs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from trtforge.engines.aoti.compile_cache import CompileCacheFormat
from trtforge.engines.base import (
    BuildOutcome,
    CacheFormat,
    OnLog,
    RunOutcome,
    Toolchain,
    image_digest,
)
from trtforge.engines.driver_process import RUN_ENVIRONMENT, DriverFailedError, run_driver
from trtforge.errors import BuildError, InputError
from trtforge.files import describe_directory
from trtforge.progress import OnProgress
from trtforge.spec import EngineSpec, did_you_mean

_PACKAGE = "trtforge.engines.aoti"
_PROBE_TIMEOUT_S = 120.0
_BUILD_TIMEOUT_S = 3600.0
_RUN_TIMEOUT_S = 3600.0
_DEVICES = ("auto", "cpu", "cuda")
# `kernels`: one pass over the weights a step, in a CUDA graph (docs/gpu-notes.md).
_DECODE = ("graphs", "kernels")


class EngineOptionError(InputError):
    """An option of the backend does not exist, or its value is not allowed."""


class EngineIncompleteError(BuildError):
    """The build driver reported success but a file it names is missing or empty."""


class AotiBackend:
    """See `trtforge.engines.base.Backend`.

    Args:
        python: Interpreter of an environment with PyTorch (and transformers for the reference).
    """

    name = "aoti"
    cache_format: CacheFormat | None = CompileCacheFormat()

    def __init__(self, python: Path = Path(sys.executable)) -> None:
        self._python = python

    def check(self, engine: EngineSpec) -> None:
        known = ["device", "threads", "decode"]
        for option, value in engine.options.items():
            if option not in known:
                raise EngineOptionError(
                    "the aoti backend has no such option",
                    field=f"engine.options.{option}",
                    value=value,
                    remedy=did_you_mean(option, known),
                )
        if _device(engine) not in _DEVICES:
            raise EngineOptionError(
                "no such device",
                field="engine.options.device",
                value=_device(engine),
                remedy=f"Use one of {', '.join(_DEVICES)}",
            )
        decode = engine.options.get("decode", _DECODE[0])
        if decode not in _DECODE:
            raise EngineOptionError(
                "there is no such way to decode",
                field="engine.options.decode",
                value=decode,
                remedy=f"Use one of {', '.join(_DECODE)}",
            )
        threads = engine.options.get("threads", 0)
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 0:
            raise EngineOptionError(
                "not a number of threads",
                field="engine.options.threads",
                value=threads,
                remedy="Use 0 for all cores, or a positive integer",
            )

    def probe(self, engine: EngineSpec, work_dir: Path) -> Toolchain:
        try:
            found = run_driver(
                f"{_PACKAGE}.probe_driver",
                {"device": _device(engine), "image_digest": image_digest()},
                work_dir=work_dir,
                timeout_s=_PROBE_TIMEOUT_S,
                python=self._python,
            )
        except DriverFailedError as error:
            if error.cause != "no-gpu":
                raise
            raise EngineOptionError(
                error.problem,
                field="engine.options.device",
                value=_device(engine),
                remedy=error.remedy,
            ) from error
        return Toolchain.from_json(found)

    def build(
        self,
        engine: EngineSpec,
        *,
        toolchain: Toolchain,
        checkpoint_dir: Path,
        engine_dir: Path,
        cache_in: Path | None,
        cache_out: Path,
        work_dir: Path,
        on_progress: OnProgress,
        on_log: OnLog,
    ) -> BuildOutcome:
        inductor_dir = work_dir / "inductor"
        result = run_driver(
            f"{_PACKAGE}.build_driver",
            {
                "checkpoint_dir": str(checkpoint_dir.resolve()),
                "engine_dir": str(engine_dir.resolve()),
                "cache_in": str(cache_in.resolve()) if cache_in else None,
                "cache_out": str(cache_out.resolve()),
                "device": toolchain.device,
                "decode": _decode(engine, toolchain, _ranks(checkpoint_dir)),
                "toolchain_key": toolchain.key(),
                "limits": {
                    "max_batch_size": engine.max_batch_size,
                    "max_input_len": engine.max_input_len,
                    "max_seq_len": engine.max_seq_len,
                    "max_num_tokens": engine.max_num_tokens,
                },
            },
            work_dir=work_dir,
            timeout_s=_BUILD_TIMEOUT_S,
            python=self._python,
            # Inductor's own cache would hide what model.cache does, and grows without bound.
            environment={
                "TORCHINDUCTOR_CACHE_DIR": str(inductor_dir),
                "TRITON_CACHE_DIR": str(inductor_dir / "triton"),
                "TORCHINDUCTOR_COMPILE_THREADS": "1",
                "TMPDIR": str(work_dir),
            },
            on_progress=on_progress,
            on_log=on_log,
        )
        for name in result["files"]:
            path = engine_dir / name
            if not path.is_file() or path.stat().st_size == 0:
                raise EngineIncompleteError(
                    f"the build driver named {name}, and it is missing or empty",
                    remedy=f"See the log in {work_dir}; free disk space is a frequent cause",
                )
        cached = sum(graph["cached"] for graph in result["graphs"])
        cache: Literal["cold", "partly", "warm"] = (
            "warm" if cached == len(result["graphs"]) else "partly" if cached else "cold"
        )
        return BuildOutcome(
            files=tuple(describe_directory(engine_dir, result["files"])),
            effective=result["effective"],
            cache=cache,
            steps=tuple(result["graphs"]),
            seconds=result["seconds"],
            peak_rss_bytes=result["peak_rss_bytes"],
            warnings=tuple(f"model.cache: {warning}" for warning in result["warnings"]),
        )

    def run(
        self,
        engine: EngineSpec,
        *,
        engine_dir: Path,
        jobs: Sequence[dict[str, Any]],
        logits_dir: Path,
        work_dir: Path,
        on_progress: OnProgress,
        on_log: OnLog,
    ) -> RunOutcome:
        result = run_driver(
            f"{_PACKAGE}.run_driver",
            {
                "engine_dir": str(engine_dir.resolve()),
                "threads": engine.options.get("threads", 0),
                "jobs": list(jobs),
                "logits_dir": str(logits_dir.resolve()),
            },
            work_dir=work_dir,
            timeout_s=_RUN_TIMEOUT_S,
            python=self._python,
            environment=RUN_ENVIRONMENT,
            on_progress=on_progress,
            on_log=on_log,
        )
        return RunOutcome(
            load_s=result["load_s"],
            outputs=tuple(result["outputs"]),
            peak_rss_bytes=result["peak_rss_bytes"],
            versions={},
        )

    def bench(
        self,
        engine: EngineSpec,  # noqa: ARG002
        **_: Any,
    ) -> dict[str, Any] | None:
        """PyTorch has no benchmark of its own."""
        return None


def _device(engine: EngineSpec) -> str:
    return str(engine.options.get("device", "auto"))


def _ranks(checkpoint_dir: Path) -> int:
    config = json.loads((checkpoint_dir / "config.json").read_text())
    ranks: int = config["mapping"]["tp_size"]
    return ranks


def _decode(engine: EngineSpec, toolchain: Toolchain, ranks: int) -> str:
    """The kernels on Hopper, whose shared memory they are cut for and where they were measured.

    They fold into one kernel what is on both sides of a sum over ranks: one rank only.
    """
    best = "kernels" if toolchain.compute_capability == "9.0" and ranks == 1 else "graphs"
    return str(engine.options.get("decode", best))
