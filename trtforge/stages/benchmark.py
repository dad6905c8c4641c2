"""benchmark: the engine against the original model, in one run: speed and correctness."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtforge.benchmark.machine import describe_machine
from trtforge.benchmark.metrics import FORMULAS, Measurement, measure
from trtforge.benchmark.report import BenchmarkReport
from trtforge.benchmark.workload import benchmark_jobs
from trtforge.engines.base import RunOutcome, Toolchain
from trtforge.engines.reference.runner import run_reference
from trtforge.engines.registry import open_backend
from trtforge.errors import BuildError
from trtforge.files import FileRef, describe_directory, files_digest
from trtforge.gates.correctness import Verdict, correctness_jobs, judge
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec
from trtforge.stages.prompts import gate_prompts
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage
from trtforge.store import StageResult
from trtforge.tokenizer import open_tokenizer

_log = logging.getLogger("trtforge")


def benchmark_inputs(
    spec: BuildSpec, model: PulledModel, engine: Sequence[FileRef], toolchain: Toolchain
) -> dict[str, Any]:
    """What decides what is measured. (What comes out is never twice the same.)"""
    return {
        "engine": files_digest(engine),
        "model": model.content_digest,
        "benchmark": spec.benchmark.model_dump(mode="json"),
        "concurrency": list(spec.concurrencies()),
        "gates": spec.gates.model_dump(mode="json"),
        "threads": spec.engine.options.get("threads", 0),
        "toolchain": toolchain.to_json(),
    }


def benchmark(
    shop: Workshop,
    spec: BuildSpec,
    model: PulledModel,
    engine: Sequence[FileRef],
    toolchain: Toolchain,
) -> StageOutcome:
    """Measure; the outputs are `report.json` and `requests.jsonl` (the times of every token)."""

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        return _measure_both(shop, spec, model, engine, toolchain, scratch, on_progress)

    inputs = benchmark_inputs(spec, model, engine, toolchain)
    return run_stage(shop, "benchmark", inputs, make, _describe)


def _measure_both(
    shop: Workshop,
    spec: BuildSpec,
    model: PulledModel,
    engine: Sequence[FileRef],
    toolchain: Toolchain,
    scratch: Path,
    on_progress: OnProgress,
) -> Made:
    model_dir, engine_dir = scratch / "model", scratch / "engine"
    shop.store.materialise(model.files, model_dir, on_progress=on_progress)
    shop.store.materialise(engine, engine_dir, on_progress=on_progress)
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    prompts = gate_prompts(spec, open_tokenizer(model_dir), vocab_size)
    engine_checks, reference_checks = correctness_jobs(
        prompts, spec.gates.new_tokens, spec.engine.max_batch_size
    )
    load = benchmark_jobs(spec, vocab_size)

    def on_log(line: str) -> None:
        _log.debug("%s", line)

    logits = {name: scratch / f"{name}-logits" for name in ("engine", "eager")}
    for directory in logits.values():
        directory.mkdir()
    backend = open_backend(spec.engine.backend, shop.interpreter(spec.engine.backend))
    mine = backend.run(
        spec.engine,
        engine_dir=engine_dir,
        jobs=[*engine_checks, *load],
        logits_dir=logits["engine"],
        work_dir=scratch,
        on_progress=on_progress,
        on_log=on_log,
    )
    threads = spec.engine.options.get("threads", 0)
    theirs = run_reference(
        model_dir,
        dtype=spec.checkpoint.dtype,
        device=toolchain.device,
        threads=int(threads),
        jobs=[*reference_checks, *load],
        logits_dir=logits["eager"],
        work_dir=scratch,
        on_progress=on_progress,
        on_log=on_log,
        python=shop.python,
    )
    verdicts = judge(
        engine_checks,
        _by_id(mine),
        _by_id(theirs),
        engine_logits_dir=logits["engine"],
        reference_logits_dir=logits["eager"],
        rounding_factor=spec.gates.rounding_factor,
    )
    facts = {
        "machine": describe_machine(toolchain),
        "formulas": FORMULAS,
        "engine": _measurements(load, mine),
        "eager": _measurements(load, theirs),
        "engine_load_s": mine.load_s,
        "eager_load_s": theirs.load_s,
        "engine_peak_rss_bytes": mine.peak_rss_bytes,
        "eager_peak_rss_bytes": theirs.peak_rss_bytes,
        "eager_versions": theirs.versions,
        "correctness": [{**verdict.to_json(), "passed": verdict.passed} for verdict in verdicts],
    }
    out = scratch / "report"
    out.mkdir()
    try:
        facts["own_benchmark"] = backend.bench(
            spec.engine,
            engine_dir=engine_dir,
            model_dir=model_dir,
            model_name=model.name,
            jobs=load,
            out_dir=out,
            work_dir=scratch,
            on_progress=on_progress,
            on_log=on_log,
        )
    except BuildError as error:
        # Ours has measured already; this one is kept beside it for comparison.
        _log.warning("the toolchain's own benchmark did not measure: %s", error)
    (out / "report.json").write_bytes(BenchmarkReport.model_validate(facts).to_bytes())
    with (out / "requests.jsonl").open("w") as lines:
        for who, run in (("engine", mine), ("eager", theirs)):
            for output in run.outputs:
                kept = ("id", "tokens", "step_s", "request_s")
                record = {"who": who, **{k: output[k] for k in kept if k in output}}
                lines.write(json.dumps(record) + "\n")
    return Made(out, describe_directory(out), facts)


def measurements(facts: dict[str, Any], who: str) -> list[Measurement]:
    """The measurements of `engine` or `eager` from a benchmark stage's facts."""
    return [Measurement.from_json(data) for data in facts[who]]


def verdicts(facts: dict[str, Any]) -> list[Verdict]:
    """The correctness verdicts from a benchmark stage's facts."""
    return [
        Verdict(**{k: v for k, v in data.items() if k != "passed"}) for data in facts["correctness"]
    ]


def _measurements(load: list[dict[str, Any]], run: RunOutcome) -> list[dict[str, Any]]:
    outputs = _by_id(run)
    return [measure(job, outputs[job["id"]]).to_json() for job in load]


def _by_id(run: RunOutcome) -> dict[str, dict[str, Any]]:
    return {output["id"]: output for output in run.outputs}


def _describe(result: StageResult) -> str:
    facts: dict[str, Any] = result.facts
    mine, theirs = measurements(facts, "engine")[0], measurements(facts, "eager")[0]
    ratio = mine.output_tokens_per_s / theirs.output_tokens_per_s
    passed = sum(verdict.passed for verdict in verdicts(facts))
    return (
        f"{mine.output_tokens_per_s:.1f} output tokens/s at concurrency {mine.concurrency}, "
        f"{ratio:.2f}× eager; {passed} of {len(facts['correctness'])} answers correct"
    )
