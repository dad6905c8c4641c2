"""Building an engine, running it, and whether it computes what the model computes."""

import json
from pathlib import Path

from trtforge.engines.base import BuildOutcome
from trtforge.engines.reference.runner import run_reference
from trtforge.engines.trtllm.backend import TrtllmBackend
from trtforge.engines.trtllm.bench import requests_of_jobs, run_trtllm_bench
from trtforge.engines.trtllm.build_log import PHASES, BuildLog
from trtforge.engines.trtllm.run import run_for_facts
from trtforge.gates.correctness import correctness_jobs, judge
from trtforge.gpu_check.workbench import LIMITS, NotRunError, Workbench, require
from trtforge.progress import ignore
from trtforge.tokenizer import open_tokenizer

QUESTION = "How do I count to nine in French?"
_NEW_TOKENS = 24
_ANSWER_TOKENS = 64
_ROUNDING_FACTOR = 2.0


def check_first_build(bench: Workbench) -> str:
    source = bench.need(bench.checkpoint, "there is no checkpoint")
    bench.found()
    engine = bench.work_dir / "engine"
    bench.first = _build(bench, source, engine, None, bench.log)
    bench.engine = engine
    bench.measured("build without timing cache", f"{bench.first.seconds:.1f} s")
    bench.measured("peak host memory of it", f"{bench.first.peak_rss_bytes / 1e9:.2f} GB")
    if bench.first.peak_gpu_bytes is not None:
        bench.measured("peak GPU memory of it", f"{bench.first.peak_gpu_bytes / 1e9:.2f} GB")
    bench.evidence = [" ".join(bench.first.command or ()), *bench.first.warnings]
    return f"{bench.first.seconds:.1f} s"


def check_files(bench: Workbench) -> str:
    engine = bench.need(bench.engine, "there is no engine")
    config = json.loads((engine / "config.json").read_text())
    missing = {"version", "pretrained_config", "build_config"} - config.keys()
    require(not missing, f"config.json has no {', '.join(sorted(missing))}")
    names = sorted(path.name for path in engine.iterdir())
    bench.evidence = [*names, json.dumps(config["build_config"], indent=1)]
    require(names == ["config.json", "rank0.engine"], f"files: {', '.join(names)}")
    require(config["version"] == bench.release.version, f"version is {config['version']}")
    effective = {name: config["build_config"].get(name) for name in LIMITS}
    clipped = {k: v for k, v in effective.items() if v != LIMITS[k] and k != "max_input_len"}
    require(not clipped, f"in effect: {clipped}; asked for: {LIMITS}")
    size = (engine / "rank0.engine").stat().st_size
    bench.measured("rank0.engine", f"{size / 1e6:.1f} MB")
    return f"{', '.join(names)}; limits in effect as asked for"


def check_log(bench: Workbench) -> str:
    if not bench.log:
        raise NotRunError("nothing was built")
    log = BuildLog(0.0)
    for number, line in enumerate(bench.log):
        log.feed(line, float(number))
    seen = {phase.name for phase in log.phases}
    worth = [line for line in bench.log if "[W]" in line or "[E]" in line]
    bench.evidence = [*worth, "--- last lines ---", *bench.log[-25:]]
    missing = [phase for phase in PHASES if phase not in seen]
    require(not missing, f"no line told of {', '.join(missing)}, in {len(bench.log)} lines")
    told = "" if log.said_peak_bytes else "; no line told the peak of memory"
    return f"every phase was told of, in {len(bench.log)} lines{told}"


def check_second_build(bench: Workbench) -> str:
    source = bench.need(bench.checkpoint, "there is no checkpoint")
    first = bench.need(bench.first, "the first build failed")
    cache = bench.work_dir / "engine.cache"
    second = _build(bench, source, bench.work_dir / "engine-again", cache, [])
    bench.measured("build with timing cache", f"{second.seconds:.1f} s")
    sizes = [p.stat().st_size for p in (cache, bench.work_dir / "engine-again.cache")]
    bench.measured("model.cache, first and second", f"{sizes[0]} and {sizes[1]} bytes")
    cold, warm = _compile_s(first), _compile_s(second)
    bench.evidence = [*second.warnings, json.dumps(second.steps), json.dumps(first.steps)]
    require(second.cache != "cold", "TensorRT did not use it")
    if bench.report.standin:
        raise NotRunError("the stand-in compiles nothing, so nothing can be quicker")
    require(warm < cold, f"compiling took {warm:.1f} s with it and {cold:.1f} s without")
    return f"compiling: {cold:.1f} s without, {warm:.1f} s with it ({second.cache})"


def check_run(bench: Workbench) -> str:
    engine = bench.need(bench.engine, "there is no engine")
    tokenizer = open_tokenizer(bench.model_dir)
    ids = tokenizer.encode_question(QUESTION) if tokenizer else [1, 2, 3, 4]
    checks, bench.reference_jobs = correctness_jobs([ids, ids[::-1]], _NEW_TOKENS, 1)
    ask = {"id": "ask", "prompts": [ids], "max_new_tokens": _ANSWER_TOKENS}
    stop = {"stop_ids": list(tokenizer.stop_ids)} if tokenizer else {}
    load = {
        "id": "load",
        "prompts": [ids] * LIMITS["max_batch_size"],
        "max_new_tokens": 32,
        "warmups": 1,
        "repeats": 3,
    }
    bench.checks, bench.load = checks, load
    logits = bench.scratch("logits")
    result = run_for_facts(
        bench.interpreter(),
        bench.release.version,
        engine_dir=engine,
        jobs=[*checks, {**ask, **stop}, load],
        logits_dir=logits,
        work_dir=bench.scratch("run"),
        on_progress=ignore,
        on_log=lambda _line: None,
    )
    bench.outputs = {output["id"]: output for output in result["outputs"]}
    bench.measured("load the engine", f"{result['load_s']:.1f} s")
    if result["peak_gpu_bytes"]:
        bench.measured("peak GPU memory of the run", f"{result['peak_gpu_bytes'] / 1e9:.2f} GB")
    answer = bench.outputs["ask"]["tokens"][0]
    text = tokenizer.decode(answer) if tokenizer else str(answer)
    bench.evidence = [f"{QUESTION} → {text!r}", f"{answer}", *result["warnings"]]
    for job in (*checks, load):
        counts = {len(tokens) for tokens in bench.outputs[job["id"]]["tokens"]}
        wanted = {job["max_new_tokens"]}
        require(counts == wanted, f"{job['id']} gave {counts} tokens instead of {wanted}")
    together = min(len(answer), _NEW_TOKENS)
    agreed = answer[:together] == bench.outputs["prompt-0"]["tokens"][0][:together]
    return f"{len(answer)} tokens; with and without logits {'the same' if agreed else 'OTHER'}"


def check_streaming(bench: Workbench) -> str:
    output = bench.need(bench.outputs.get("load"), "the run failed")
    for requests in output["request_s"]:
        for times in requests:
            require(times == sorted(times), "times go back")
            distinct = len(set(times))
            require(distinct > len(times) / 2, f"{len(times)} tokens came in {distinct} pieces")
    steps = output["step_s"][-1]
    batch = LIMITS["max_batch_size"]
    bench.measured(f"TTFT, {batch} at once", f"{steps[0] * 1e3:.1f} ms")
    bench.measured(f"ITL, {batch} at once", f"{(steps[-1] - steps[0]) / 31 * 1e3:.2f} ms")
    bench.measured(f"output tokens/s, {batch} at once", f"{batch * 32 / steps[-1]:.0f}")
    bench.evidence = [" ".join(f"{step * 1e3:.2f}" for step in steps)]
    return f"{len(steps)} steps"


def check_answer(bench: Workbench) -> str:
    if not bench.outputs:
        raise NotRunError("the run failed")
    if bench.report.standin:
        raise NotRunError("the stand-in does arithmetic instead of the model's")
    directory = bench.scratch("reference")
    theirs = run_reference(
        bench.model_dir,
        dtype="bfloat16",
        device="cpu",
        threads=0,
        jobs=bench.reference_jobs,
        logits_dir=directory,
        work_dir=directory,
        on_progress=ignore,
        on_log=lambda _line: None,
        python=bench.reference_python,
    )
    verdicts = judge(
        bench.checks,
        bench.outputs,
        {output["id"]: output for output in theirs.outputs},
        engine_logits_dir=bench.work_dir / "logits",
        reference_logits_dir=directory,
        rounding_factor=_ROUNDING_FACTOR,
    )
    bench.evidence = [json.dumps(verdict.to_json()) for verdict in verdicts]
    wrong = [verdict for verdict in verdicts if not verdict.passed]
    require(not wrong, f"{len(wrong)} of {len(verdicts)}: {wrong[0].reason}")
    return f"{len(verdicts)} answers within {_ROUNDING_FACTOR:g} times the rounding of bf16"


def check_bench(bench: Workbench) -> str:
    engine = bench.need(bench.engine, "there is no engine")
    load = bench.need(bench.load, "the run failed")
    found = run_trtllm_bench(
        bench.interpreter(),
        bench.release.version,
        engine_dir=engine,
        model_dir=bench.model_dir,
        model_name=bench.model_dir.name,
        requests=requests_of_jobs([load]) * 4,
        out_dir=bench.work_dir,
        work_dir=bench.scratch("bench"),
        concurrency=LIMITS["max_batch_size"],
    )
    bench.evidence = [" ".join(found.command), json.dumps(found.headline)]
    throughput = found.headline["output_tokens_per_s"]
    return f"{throughput:.0f} output tokens/s" if throughput else "no output throughput told"


def _build(
    bench: Workbench, source: Path, engine: Path, cache_in: Path | None, log: list[str]
) -> BuildOutcome:
    return TrtllmBackend(bench.interpreter()).build(
        bench.spec,
        toolchain=bench.found().toolchain,
        checkpoint_dir=source,
        engine_dir=engine,
        cache_in=cache_in,
        cache_out=engine.with_suffix(".cache"),
        work_dir=bench.scratch(f"{engine.name}-build"),
        on_progress=ignore,
        on_log=log.append,
    )


def _compile_s(built: BuildOutcome) -> float:
    """Seconds of TensorRT alone: what a timing cache can save."""
    told = [float(s["seconds"]) for s in built.steps if s.get("name") == "compile"]
    return sum(told) if told else built.seconds
