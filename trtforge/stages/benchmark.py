"""benchmark: the engine against the original model, in one run: speed and correctness."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtforge.benchmark.machine import describe_machine
from trtforge.benchmark.metrics import Measurement
from trtforge.benchmark.report import BenchmarkReport
from trtforge.benchmark.workload import benchmark_jobs, sweep
from trtforge.engines.base import Toolchain
from trtforge.errors import BuildError
from trtforge.files import FileRef, describe_directory, files_digest
from trtforge.gates.correctness import Verdict
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec
from trtforge.stages.bench_report import engine_before, engine_rows, write_evidence
from trtforge.stages.measuring import (
    Bench,
    log_line,
    model_shape,
    own_prompts,
    run_sweep,
    speed_facts,
)
from trtforge.stages.prompts import gate_checks
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
        **own_prompts(spec),
        "concurrency": list(spec.concurrencies()),
        # How its speed is judged changes nothing in what is measured.
        "gates": spec.gates.model_dump(mode="json", exclude={"performance"}),
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
    """Measure; the outputs are the report (as data, page and short form), `requests.jsonl` (the
    times of every token) and `answers.jsonl` (what the correctness gate was answered)."""

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
    tokenizer = open_tokenizer(model_dir)
    checks = gate_checks(spec, tokenizer, vocab_size)
    waves = sweep(spec, vocab_size, tokenizer)
    bench = Bench(shop, spec, toolchain, scratch, on_progress)
    measured = run_sweep(
        spec,
        waves,
        {"engine": bench.engine(engine_dir), "eager": bench.eager(model_dir)},
        {"engine": checks.engine_jobs, "eager": checks.reference_jobs},
        watch_gpus=toolchain.device == "cuda",
    )
    verdicts = checks.judge(
        measured.outputs["engine"],
        measured.outputs["eager"],
        engine_logits_dir=bench.logits_dir("engine"),
        reference_logits_dir=bench.logits_dir("eager"),
    )
    facts = {
        "machine": describe_machine(toolchain),
        **speed_facts(
            spec,
            measured,
            shape=model_shape(engine_dir),
            rates=bench.rates(),
            device=toolchain.device,
        ),
        "correctness": [{**verdict.to_json(), "passed": verdict.passed} for verdict in verdicts],
    }
    out = scratch / "report"
    out.mkdir()
    try:
        facts["own_benchmark"] = bench.backend.bench(
            spec.engine,
            engine_dir=engine_dir,
            model_dir=model_dir,
            model_name=model.name,
            jobs=benchmark_jobs(spec, vocab_size),
            out_dir=out,
            work_dir=scratch,
            on_progress=on_progress,
            on_log=log_line,
        )
    except BuildError as error:
        # Ours has measured already; this one is kept beside it for comparison.
        _log.warning("the toolchain's own benchmark did not measure: %s", error)
    report = BenchmarkReport.model_validate(facts)
    write_evidence(
        out,
        report,
        measured.samples,
        title=f"{model.name} on {toolchain.gpu_name or 'CPU'}",
        card=engine_rows(spec, model.name, model.source, toolchain),
        previous=engine_before(shop, spec, model.name, toolchain),
    )
    with (out / "answers.jsonl").open("w", encoding="utf-8") as lines:
        for who, outputs in measured.outputs.items():
            for name, output in outputs.items():
                told = {"who": who, "id": name, "tokens": output["tokens"]}
                lines.write(json.dumps(told) + "\n")
    return Made(out, describe_directory(out), facts)


def measurements(facts: dict[str, Any], who: str) -> list[Measurement]:
    """The measurements of `engine` or `eager` from a benchmark stage's facts."""
    return [Measurement.from_json(data) for data in facts[who]]


def verdicts(facts: dict[str, Any]) -> list[Verdict]:
    """The correctness verdicts from a benchmark stage's facts."""
    return [
        Verdict(**{k: v for k, v in data.items() if k != "passed"}) for data in facts["correctness"]
    ]


def _describe(result: StageResult) -> str:
    facts: dict[str, Any] = result.facts
    mine, theirs = measurements(facts, "engine")[0], measurements(facts, "eager")[0]
    ratio = mine.output_tokens_per_s / theirs.output_tokens_per_s
    passed = sum(verdict.passed for verdict in verdicts(facts))
    return (
        f"{mine.output_tokens_per_s:.1f} output tokens/s at concurrency {mine.concurrency}, "
        f"{ratio:.2f}× eager; {passed} of {len(facts['correctness'])} answers correct"
    )
