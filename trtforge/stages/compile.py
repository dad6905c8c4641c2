"""compile: TensorRT-LLM checkpoint → engine, with the shared timing cache."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtforge.engines.base import Backend, Toolchain
from trtforge.engines.registry import open_backend
from trtforge.errors import ServiceError
from trtforge.files import FileRef, describe_directory, files_digest
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec, EngineSpec
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage, stage_key
from trtforge.store import StageResult, TimingCacheUse

CACHE_FILE = "model.cache"
_log = logging.getLogger("trtforge")


def probe_toolchain(shop: Workshop, spec: BuildSpec) -> Toolchain:
    """The toolchain that would compile here.

    Raises:
        InputError: an engine option does not exist or has a wrong value.
        BuildError: the toolchain is missing or incomplete.
    """
    return probe_backend(shop, spec.engine)


def probe_backend(shop: Workshop, engine: EngineSpec) -> Toolchain:
    """As `probe_toolchain`, for an engine whose spec is known alone."""
    backend = open_backend(engine.backend, shop.interpreter(engine.backend))
    backend.check(engine)
    shop.work_root.mkdir(parents=True, exist_ok=True)
    return backend.probe(engine, shop.work_root)


def compile_inputs(
    checkpoint: Sequence[FileRef], spec: BuildSpec, toolchain: Toolchain
) -> dict[str, Any]:
    """What decides the engine.

    Not the mode of the timing cache, which decides how long it takes to compile: the engine that
    one mode made is found in every other.
    """
    return {
        "checkpoint": files_digest(checkpoint),
        "engine": spec.engine.model_dump(mode="json", exclude={"timing_cache"}),
        "toolchain": toolchain.to_json(),
    }


def compile_engine(
    shop: Workshop, spec: BuildSpec, checkpoint: Sequence[FileRef], toolchain: Toolchain
) -> StageOutcome:
    """Compile; the outputs are the engine's files and `model.cache`."""
    inputs = compile_inputs(checkpoint, spec, toolchain)
    backend = open_backend(spec.engine.backend, shop.interpreter(spec.engine.backend))

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        shop.store.materialise(checkpoint, scratch / "checkpoint", on_progress=on_progress)
        cache_in, cache_out = scratch / "input.cache", scratch / CACHE_FILE
        mode = spec.engine.timing_cache
        found = None if mode == "off" else shop.store.timing.get(toolchain.key(), cache_in)
        known = _entries(backend, cache_in) if found else None
        built = backend.build(
            spec.engine,
            toolchain=toolchain,
            checkpoint_dir=scratch / "checkpoint",
            engine_dir=scratch / "engine",
            cache_in=cache_in if found else None,
            cache_out=cache_out,
            work_dir=scratch,
            on_progress=on_progress,
            on_log=lambda line: _log.debug("%s", line),
        )
        for warning in built.warnings:
            _log.warning("%s", warning)
        timing_cache = {
            "mode": mode,
            "outcome": "miss" if built.cache == "cold" else "hit",
            "sha256": found.sha256 if found else None,
            "entries_before": known,
            "entries_after": _entries(backend, cache_out),
        }
        if mode == "read-write":
            _share(shop, toolchain, backend, cache_out, found)
        cache_out.rename(scratch / "engine" / CACHE_FILE)
        files = [*built.files, *describe_directory(scratch / "engine", [CACHE_FILE])]
        facts = {
            "effective": built.effective,
            "cache": built.cache,
            "timing_cache": timing_cache,
            "steps": list(built.steps),
            "compile_s": built.seconds,
            "cold_compile_s": _cold_seconds(shop, inputs, built.cache, built.seconds),
            "peak_rss_bytes": built.peak_rss_bytes,
            "peak_gpu_bytes": built.peak_gpu_bytes,
            "command": list(built.command),
            "warnings": list(built.warnings),
        }
        return Made(scratch / "engine", files, facts)

    return run_stage(shop, "compile", inputs, make, _describe)


def engine_files(outputs: Sequence[FileRef]) -> tuple[FileRef, ...]:
    """The outputs of compile without `model.cache`."""
    return tuple(f for f in outputs if f.path != CACHE_FILE)


def timing_cache_use(compiled: StageResult) -> TimingCacheUse:
    """What the compiler had of the timing cache, for the manifest."""
    facts: dict[str, Any] = compiled.facts
    # Records made before this was kept tell less.
    told = facts.get("timing_cache") or {
        "sha256": None,
        "outcome": "miss" if facts["cache"] == "cold" else "hit",
    }
    return TimingCacheUse.model_validate(told)


def _share(
    shop: Workshop,
    toolchain: Toolchain,
    backend: Backend,
    cache_out: Path,
    started_from: FileRef | None,
) -> None:
    """Make the cache that the compiler left the one of this toolchain, with what others added."""
    try:
        shop.store.timing.put(
            toolchain.key(),
            cache_out,
            entries=_entries(backend, cache_out),
            started_from=started_from.sha256 if started_from else None,
            cache_format=backend.cache_format,
        )
    except ServiceError as error:
        # It would only have made other builds quicker; the engine is made.
        _log.warning("%s is not shared with other builds: %s", CACHE_FILE, error)


def _entries(backend: Backend, cache: Path) -> int | None:
    return backend.cache_format.count(cache) if backend.cache_format else None


def _cold_seconds(
    shop: Workshop, inputs: dict[str, Any], cache: str, seconds: float
) -> float | None:
    """How long this very compile took without a cache: now, or in the build this one replaces."""
    if cache == "cold":
        return seconds
    before = shop.store.get_stage("compile", stage_key("compile", inputs))
    value = before.facts.get("cold_compile_s") if before else None
    return value if isinstance(value, float) else None


def _describe(result: StageResult) -> str:
    facts: dict[str, Any] = result.facts
    seconds, cold = facts["compile_s"], facts["cold_compile_s"]
    if facts["cache"] == "cold":
        return f"compiled cold in {seconds:.1f} s"
    state = {"partly": "partly warm", "warm": "warm"}[facts["cache"]]
    text = f"compiled in {seconds:.1f} s with a {state} model.cache"
    return f"{text}; {cold:.1f} s without it, {cold / seconds:.1f}×" if cold else text
