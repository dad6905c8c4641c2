"""TensorRT-LLM: `trtllm-build` in the release's own environment, on an NVIDIA GPU."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trtforge.checkpoint.target import Target
from trtforge.engines.base import (
    BuildOutcome,
    CacheFormat,
    OnLog,
    RunOutcome,
    Toolchain,
)
from trtforge.engines.driver_process import DriverFailedError, run_driver
from trtforge.engines.trtllm.bench import requests_of_jobs, run_trtllm_bench
from trtforge.engines.trtllm.build_failures import diagnose
from trtforge.engines.trtllm.command import CACHE, CHECKPOINT, ENGINE, build_arguments
from trtforge.engines.trtllm.convert import convert_upstream
from trtforge.engines.trtllm.engine_directory import (
    LIMITS,
    clipped,
    effective_config,
    read_world_size,
    require_complete,
)
from trtforge.engines.trtllm.options import Given, check_options, refuse_misfits
from trtforge.engines.trtllm.probe import (
    TrtllmMissingError,
    named_error,
    probe,
    require_python,
)
from trtforge.engines.trtllm.run import run_engine
from trtforge.engines.trtllm.versions import release
from trtforge.errors import InputError
from trtforge.files import FileRef, describe_directory
from trtforge.progress import OnProgress
from trtforge.spec import EngineSpec

_BUILD_DRIVER = "trtforge.engines.trtllm.build_driver"
_LOG = "build_driver.log"
_BUILD_TIMEOUT_S = 4 * 3600.0


class CheckpointUnreadableError(InputError):
    """The directory to compile has no config.json that says what the checkpoint is."""


class TrtllmBackend:
    """See `trtforge.engines.base.Backend`.

    Args:
        python: Interpreter that has `tensorrt_llm`; None: none is configured, and all but `check`
            says so.
        build_timeout_s: Of one build, all ranks.
    """

    name = "trtllm"
    # TensorRT combines and counts its caches only where it is installed.
    cache_format: CacheFormat | None = None

    def __init__(
        self, python: Path | None = None, *, build_timeout_s: float = _BUILD_TIMEOUT_S
    ) -> None:
        self._python = python
        self._build_timeout_s = build_timeout_s

    def check(self, engine: EngineSpec) -> None:
        check_options(release(engine.version), engine)

    def probe(self, engine: EngineSpec, work_dir: Path) -> Toolchain:
        return probe(self._python, release(engine.version).version, work_dir).toolchain

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
        """Compile; see the contract.

        Raises:
            InputError: of `check`, or an option that does not go with the checkpoint or the GPU.
            BuildError: one class per cause, `trtforge.engines.trtllm.build_failures`, or
                EngineIncompleteError, or one of the driver's. Its remedy names the log.
        """
        used = release(engine.version)
        log_path = work_dir.absolute() / _LOG
        given = check_options(used, engine)
        checkpoint = _read_checkpoint_config(checkpoint_dir)
        refuse_misfits(used, given, checkpoint, toolchain.compute_capability)
        world_size = read_world_size(checkpoint)
        python = require_python(self._python)
        with tempfile.TemporaryDirectory(prefix="trtllm-", dir=work_dir) as scratch_name:
            scratch = Path(scratch_name)
            (scratch / CHECKPOINT).symlink_to(checkpoint_dir.resolve(), target_is_directory=True)
            if cache_in:
                shutil.copyfile(cache_in, scratch / CACHE)
            # Without one to start from, the second rank starts from what the first has written.
            arguments = build_arguments(
                used, engine, given, read_cache=cache_in is not None or world_size > 1
            )
            result = self._run_trtllm_build(
                python, scratch, arguments, world_size, given, log_path, on_progress, on_log
            )
            config = require_complete(
                scratch / ENGINE,
                world_size,
                managed_weights=bool(given.get("fast_build")),
                cache=scratch / CACHE,
                log_path=log_path,
            )
            cache, complaints = _judge_cache(result["timing_cache"], cache_in, scratch / CACHE)
            _move(scratch / CACHE, cache_out)
            _move(scratch / ENGINE, engine_dir)
        asked = {name: getattr(engine, name) for name in LIMITS}
        effective = effective_config(config)
        return BuildOutcome(
            files=tuple(describe_directory(engine_dir)),
            effective=effective,
            cache=cache,
            steps=tuple(result["phases"]),
            seconds=result["seconds"],
            peak_rss_bytes=result["memory"]["peak_rss_bytes"],
            warnings=(*complaints, *clipped(asked, effective)),
            peak_gpu_bytes=result["memory"]["peak_gpu_bytes"],
            command=("trtllm-build", *arguments),
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
        return run_engine(
            require_python(self._python),
            release(engine.version).version,
            engine_dir=engine_dir,
            jobs=jobs,
            logits_dir=logits_dir,
            work_dir=work_dir,
            on_progress=on_progress,
            on_log=on_log,
        )

    def bench(
        self,
        engine: EngineSpec,
        *,
        engine_dir: Path,
        model_dir: Path,
        model_name: str,
        jobs: Sequence[dict[str, Any]],
        out_dir: Path,
        work_dir: Path,
        on_progress: OnProgress,
        on_log: OnLog,
    ) -> dict[str, Any] | None:
        """`trtllm-bench` on the same prompts; see the contract."""
        measured = run_trtllm_bench(
            require_python(self._python),
            release(engine.version).version,
            engine_dir=engine_dir,
            model_dir=model_dir,
            model_name=model_name,
            requests=requests_of_jobs(jobs),
            out_dir=out_dir,
            work_dir=work_dir,
            on_progress=on_progress,
            on_log=on_log,
        )
        return measured.to_json()

    def convert_upstream(
        self, model_dir: Path, out_dir: Path, target: Target, on_progress: OnProgress
    ) -> list[FileRef]:
        """Convert with the release's own script: `trtforge.checkpoint.upstream`."""
        return convert_upstream(
            require_python(self._python), model_dir, out_dir, target, on_progress
        )

    def _run_trtllm_build(
        self,
        python: Path,
        scratch: Path,
        arguments: list[str],
        world_size: int,
        given: Given,
        log_path: Path,
        on_progress: OnProgress,
        on_log: OnLog,
    ) -> dict[str, Any]:
        before = log_path.stat().st_size if log_path.exists() else 0
        workers = given.get("workers", 1)
        try:
            result = run_driver(
                _BUILD_DRIVER,
                {
                    "directory": str(scratch.resolve()),
                    "arguments": arguments,
                    "world_size": world_size,
                    "at_once": min(world_size, workers) if isinstance(workers, int) else 1,
                },
                work_dir=log_path.parent,
                timeout_s=self._build_timeout_s,
                python=python,
                environment={"TMPDIR": str(scratch.resolve())},
                on_progress=on_progress,
                on_log=on_log,
            )
        except DriverFailedError as error:
            causes = {"no-trtllm-build": TrtllmMissingError}
            field, value = "TRTFORGE_TRTLLM_PYTHON", str(python)
            raise named_error(error, causes, field=field, value=value) from error
        if result["exit_code"] != 0:
            with log_path.open("rb") as log:
                log.seek(before)
                said = log.read().decode(errors="replace")
            raise diagnose(result["exit_code"], said, log_path)
        return result


def _read_checkpoint_config(checkpoint_dir: Path) -> dict[str, Any]:
    path = checkpoint_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        read_world_size(config)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointUnreadableError(
            f"this is no config.json of a TensorRT-LLM checkpoint ({error})",
            field="checkpoint",
            value=str(path),
            remedy="Convert the model again",
        ) from error
    return dict(config)


def _judge_cache(
    told: Mapping[str, Any], cache_in: Path | None, cache_out: Path
) -> tuple[Literal["cold", "partly", "warm"], list[str]]:
    """How much of the timing cache was of use, and what a person should know of it.

    TensorRT does not say. It adds what it had to measure: a file that has not grown had everything.
    """
    complaints = [told["complaint"]] if told["complaint"] else []
    if cache_in is None:
        return "cold", complaints
    if told["refused"]:
        return "cold", [*complaints, "TensorRT did not use the timing cache: it is of another kind"]
    if told["unreadable"]:
        return "cold", [*complaints, "TensorRT could not read the timing cache and began a new one"]
    grown = cache_out.stat().st_size > cache_in.stat().st_size
    return ("partly" if grown else "warm"), complaints


def _move(source: Path, target: Path) -> None:
    """By rename where that can be; else a copy that appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except OSError:
        partial = target.with_name(f".{target.name}.partial")
        shutil.move(source, partial)
        partial.rename(target)
