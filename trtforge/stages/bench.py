"""bench: measure a published engine on this machine, again and with any workload."""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtforge.benchmark.machine import describe_machine
from trtforge.benchmark.previous import Previous
from trtforge.benchmark.report import BOUNDARY, PAGE_FILE, SHORT_FILE, BenchmarkReport
from trtforge.benchmark.summary import Point, Summary
from trtforge.benchmark.workload import sweep
from trtforge.engines.base import Toolchain
from trtforge.errors import BuildError, InputError, ServiceError
from trtforge.files import describe_directory
from trtforge.progress import OnProgress, ignore
from trtforge.spec import BuildSpec, parse_spec
from trtforge.stages.ask import require_valid_here
from trtforge.stages.bench_report import (
    engine_before,
    manifest_rows,
    new_run_id,
    page_title,
    write_evidence,
)
from trtforge.stages.measuring import Bench, Measured, Run, model_shape, run_sweep, speed_facts
from trtforge.stages.pull import pull
from trtforge.stages.stage import Workshop
from trtforge.store import Manifest
from trtforge.store.aliases import who
from trtforge.store.benchmarks import BenchedPoint, BenchedValue, BenchmarkRecord, Benchmarks
from trtforge.tokenizer import open_tokenizer

_TOLD = ("output_tokens_per_s", "ttft_s", "itl_s", "request_latency_s")
_log = logging.getLogger("trtforge")


@dataclass(frozen=True)
class Benched:
    """A benchmark of a published engine, as it is kept.

    Attributes:
        location: `s3://…` of the run's files.
        markdown: The report's short form.
        record: What the engine's history keeps of it.
    """

    manifest: Manifest
    report: BenchmarkReport
    summary: Summary
    record: BenchmarkRecord
    location: str
    markdown: str


def bench(
    shop: Workshop,
    engine_id: str,
    changes: Mapping[str, Any] | None = None,
    *,
    eager: bool = True,
    on_progress: OnProgress = ignore,
) -> Benched:
    """Measure an engine (its id, or the first digits); results are kept with the engine's history.

    Args:
        changes: Fields of `benchmark` that differ from what the engine was built with.
        eager: Measure the original model beside it, where its source still has it.

    Raises:
        EngineUnknownError: There is no such engine.
        WrongMachineError: It does not run here.
        SpecError: The engine's limits do not hold the workload; nothing is clipped.
        BuildError: It could not run, or stopped too soon.
    """
    manifest = shop.store.get_manifest(engine_id)
    spec = _spec(manifest, changes or {})
    toolchain = require_valid_here(shop, spec.engine, manifest)
    run_id = new_run_id(manifest.engine_id)
    shop.work_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=shop.work_root) as scratch_name:
        scratch = Path(scratch_name)
        measured, facts = _measure(shop, spec, manifest, toolchain, scratch, eager, on_progress)
        report = BenchmarkReport.model_validate({**facts, "correctness": []})
        summary, _ = report.again(measured.samples)
        out = scratch / "report"
        out.mkdir()
        write_evidence(
            out,
            report,
            measured.samples,
            title=page_title(manifest),
            card=manifest_rows(manifest),
            previous=_before(shop, spec, manifest, toolchain),
        )
        for ref in describe_directory(out):
            shop.store.put_run_file(run_id, ref.path, (out / ref.path).read_bytes())
        markdown = (out / SHORT_FILE).read_text(encoding="utf-8")
    record = record_of(manifest, report, summary, run_id, toolchain, shop.run_id)
    Benchmarks(shop.store.bucket).put(record)
    location = shop.store.bucket.uri(f"runs/{run_id}/{PAGE_FILE}")
    return Benched(manifest, report, summary, record, location, markdown)


def record_of(
    manifest: Manifest,
    report: BenchmarkReport,
    summary: Summary,
    run_id: str,
    toolchain: Toolchain,
    flow_run: str | None = None,
) -> BenchmarkRecord:
    """What an engine's history keeps of a benchmark."""
    return BenchmarkRecord(
        engine_id=manifest.engine_id,
        run_id=run_id,
        device=toolchain.gpu_name or str(report.machine.get("cpu")),
        workload=str(report.workload.get("label", "")),
        boundary=BOUNDARY,
        points=tuple(_benched(point) for point in summary.of("engine")),
        machine=report.machine,
        by=f"flow run {flow_run}" if flow_run else who(),
    )


def _benched(point: Point) -> BenchedPoint:
    told = point.to_json()["intervals"]
    return BenchedPoint(
        concurrency=point.concurrency,
        input_tokens=point.input_tokens,
        output_tokens=point.output_tokens,
        values={name: BenchedValue(**told[name]) for name in _TOLD if name in told},
    )


def _spec(manifest: Manifest, changes: Mapping[str, Any]) -> BuildSpec:
    """What the engine was built with, and another benchmark."""
    asked: dict[str, Any] = dict(manifest.core.spec)
    model = manifest.core.model
    return parse_spec(
        {
            **asked,
            "model": {"source": model.source, "name": model.name},
            "benchmark": {**asked.get("benchmark", {}), **changes},
        }
    )


def _measure(
    shop: Workshop,
    spec: BuildSpec,
    manifest: Manifest,
    toolchain: Toolchain,
    scratch: Path,
    eager: bool,
    on_progress: OnProgress,
) -> tuple[Measured, dict[str, Any]]:
    engine_dir, model_dir = scratch / "engine", scratch / "model"
    shop.store.materialise(manifest.core.files, engine_dir, on_progress=on_progress)
    shape = model_shape(engine_dir)
    if shape is None:
        raise BuildError(
            "the engine's config.json does not describe its model",
            remedy="Build the engine again",
        )
    tools = Bench(shop, spec, toolchain, scratch, on_progress)
    sides: dict[str, Run] = {"engine": tools.engine(engine_dir)}
    if eager and _fetch_model(shop, spec, manifest, model_dir, on_progress):
        sides["eager"] = tools.eager(model_dir)
    waves = sweep(spec, shape.vocab, open_tokenizer(engine_dir))
    measured = run_sweep(spec, waves, sides, watch_gpus=toolchain.device == "cuda")
    facts = {
        "machine": describe_machine(toolchain),
        **speed_facts(spec, measured, shape=shape, rates=tools.rates(), device=toolchain.device),
    }
    return measured, facts


def _fetch_model(
    shop: Workshop, spec: BuildSpec, manifest: Manifest, directory: Path, on_progress: OnProgress
) -> bool:
    """Whether the original model is at hand, as it was."""
    try:
        model, _ = pull(replace(shop, force=False), spec)
        if model.content_digest != manifest.core.model.content_digest:
            _log.warning("eager is not measured: the model's source has other files by now")
            return False
        shop.store.materialise(model.files, directory, on_progress=on_progress)
    except (InputError, ServiceError) as error:
        _log.warning("eager is not measured: the original model is not at hand (%s)", error)
        return False
    return True


def _before(
    shop: Workshop, spec: BuildSpec, manifest: Manifest, toolchain: Toolchain
) -> Previous | None:
    return engine_before(shop, spec, manifest.core.model.name, toolchain, than=manifest.engine_id)
