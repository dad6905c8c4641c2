"""compile: TensorRT-LLM checkpoint → engine, with the shared timing cache."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.engines.registry import open_backend
from trtforge.files import FileRef, describe_directory, files_digest
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec, EngineSpec
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage, stage_key
from trtforge.store import StageResult

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
    backend = open_backend(engine.backend, shop.python)
    backend.check(engine)
    shop.work_root.mkdir(parents=True, exist_ok=True)
    return backend.probe(engine, shop.work_root)


def compile_inputs(
    checkpoint: Sequence[FileRef], spec: BuildSpec, toolchain: Toolchain
) -> dict[str, Any]:
    """What decides the engine."""
    return {
        "checkpoint": files_digest(checkpoint),
        "engine": spec.engine.model_dump(mode="json"),
        "toolchain": toolchain.to_json(),
    }


def compile_engine(
    shop: Workshop, spec: BuildSpec, checkpoint: Sequence[FileRef], toolchain: Toolchain
) -> StageOutcome:
    """Compile; the outputs are the engine's files and `model.cache`."""
    inputs = compile_inputs(checkpoint, spec, toolchain)
    backend = open_backend(spec.engine.backend, shop.python)

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        shop.store.materialise(checkpoint, scratch / "checkpoint", on_progress=on_progress)
        cache_in = scratch / "input.cache"
        found = shop.store.get_timing_cache(toolchain.key(), cache_in)
        built = backend.build(
            spec.engine,
            toolchain=toolchain,
            checkpoint_dir=scratch / "checkpoint",
            engine_dir=scratch / "engine",
            cache_in=cache_in if found else None,
            cache_out=scratch / CACHE_FILE,
            work_dir=scratch,
            on_progress=on_progress,
            on_log=lambda line: _log.debug("%s", line),
        )
        for warning in built.warnings:
            _log.warning("%s: %s", CACHE_FILE, warning)
        cache = shop.store.put_timing_cache(toolchain.key(), scratch / CACHE_FILE)
        (scratch / CACHE_FILE).rename(scratch / "engine" / CACHE_FILE)
        files = [*built.files, *describe_directory(scratch / "engine", [CACHE_FILE])]
        facts = {
            "effective": built.effective,
            "cache": built.cache,
            "cache_sha256": cache.sha256,
            "steps": list(built.steps),
            "compile_s": built.seconds,
            "cold_compile_s": _cold_seconds(shop, inputs, built.cache, built.seconds),
            "peak_rss_bytes": built.peak_rss_bytes,
            "warnings": list(built.warnings),
        }
        return Made(scratch / "engine", files, facts)

    return run_stage(shop, "compile", inputs, make, _describe)


def engine_files(outputs: Sequence[FileRef]) -> tuple[FileRef, ...]:
    """The outputs of compile without `model.cache`."""
    return tuple(f for f in outputs if f.path != CACHE_FILE)


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
