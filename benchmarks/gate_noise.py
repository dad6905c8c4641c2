"""What rounding alone does to an engine: the distribution of all that the correctness gate limits.

Compiles an aoti engine of each model, undamaged, and judges it against the original model as a
build does. Small models are judged with several sets of random weights, for which the engine needs
no new compilation: weights lie outside of it. The limits in `gates` are argued for from what this
prints (docs/gates.md).

    python benchmarks/gate_noise.py --seeds 8 tests/fixtures/hf-models/llama31 …
    python benchmarks/gate_noise.py --seeds 1 .trtforge/models/SmolLM2-135M-Instruct

Prints a table, and one JSON object as its last line.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from trtforge.checkpoint import convert
from trtforge.engines.aoti.backend import AotiBackend
from trtforge.engines.reference.runner import run_reference
from trtforge.gates.checks import correctness_checks
from trtforge.gates.correctness import Verdict
from trtforge.progress import ignore
from trtforge.spec import BuildSpec, parse_spec
from trtforge.tokenizer import open_tokenizer

QUANTILES = (0.5, 0.9, 0.99, 1.0)
# Weights as small as the fixtures' leave attention all but uniform.
SHARPENED = 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="Hugging Face model directories")
    parser.add_argument("--seeds", type=int, default=4, help="sets of random weights per model")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--max-input-len", type=int, default=64)
    parser.add_argument("--text-tokens", type=int, default=64)
    arguments = parser.parse_args()
    found: list[tuple[str, int, Verdict]] = []
    with tempfile.TemporaryDirectory(prefix="gate-noise-") as scratch:
        for model in arguments.models:
            found += judged(model, Path(scratch) / model.name, arguments)
            show(
                f"{model.name}: {arguments.seeds} seeds",
                [v for n, _, v in found if n == model.name],
            )
    verdicts = [verdict for _, _, verdict in found]
    show("all", verdicts)
    failed = [(name, seed, v) for name, seed, v in found if not v.passed]
    for name, seed, verdict in failed:
        print(f"FALSE ALARM  {name}, seed {seed}, {verdict.job}: {verdict.reason}")
    told = {metric: quantiles(values) for metric, values in distributions(verdicts).items()}
    engines = len({(name, seed) for name, seed, _ in found})
    print(
        json.dumps(
            {
                "engines": engines,
                "verdicts": len(verdicts),
                "false_alarms": len(failed),
                "engines_failed": len({(name, seed) for name, seed, _ in failed}),
                **told,
            }
        )
    )


def judged(
    model: Path, scratch: Path, arguments: argparse.Namespace
) -> list[tuple[str, int, Verdict]]:
    """Compile once, and judge every set of weights."""
    scratch.mkdir()
    backend, engine_dir = AotiBackend(), scratch / "engine"
    random_weights = not (model / "tokenizer.json").is_file()
    found = []
    for seed in range(arguments.seeds):
        source = scratch / f"model-{seed}"
        shutil.copytree(model, source)
        if random_weights:
            draw_weights(source / "model.safetensors", seed)
        spec = spec_of(source, arguments)
        checkpoint = scratch / f"checkpoint-{seed}"
        convert(source, checkpoint)
        if not engine_dir.exists():
            (scratch / "build").mkdir()
            backend.build(
                spec.engine,
                toolchain=backend.probe(spec.engine, scratch / "build"),
                checkpoint_dir=checkpoint,
                engine_dir=engine_dir,
                cache_in=None,
                cache_out=scratch / "model.cache",
                work_dir=scratch / "build",
                on_progress=ignore,
                on_log=lambda _: None,
            )
        mine = scratch / f"engine-{seed}"
        shutil.copytree(engine_dir, mine)
        shutil.copyfile(checkpoint / "rank0.safetensors", mine / "new.safetensors")
        (mine / "new.safetensors").replace(mine / "rank0.safetensors")
        found += [(model.name, seed, v) for v in judge(spec, source, mine, scratch / f"run-{seed}")]
        for directory in (source, checkpoint, mine, scratch / f"run-{seed}"):
            shutil.rmtree(directory)
        print(f"{model.name}, seed {seed}", file=sys.stderr)
    return found


def judge(spec: BuildSpec, model_dir: Path, engine_dir: Path, work: Path) -> list[Verdict]:
    """The correctness gate on an engine directory."""
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    checks = correctness_checks(spec, open_tokenizer(model_dir), vocab_size)
    for name in ("engine", "eager"):
        (work / name).mkdir(parents=True)
    common: dict[str, Any] = {
        "work_dir": work,
        "on_progress": ignore,
        "on_log": lambda _: None,
    }
    mine = AotiBackend().run(
        spec.engine,
        engine_dir=engine_dir,
        jobs=checks.engine_jobs,
        logits_dir=work / "engine",
        **common,
    )
    theirs = run_reference(
        model_dir,
        dtype="bfloat16",
        device=str(spec.engine.options["device"]),
        threads=0,
        jobs=checks.reference_jobs,
        logits_dir=work / "eager",
        **common,
    )
    return checks.judge(
        {output["id"]: output for output in mine.outputs},
        {output["id"]: output for output in theirs.outputs},
        engine_logits_dir=work / "engine",
        reference_logits_dir=work / "eager",
    )


def spec_of(model: Path, arguments: argparse.Namespace) -> BuildSpec:
    length = arguments.max_input_len
    engine = {
        "max_batch_size": 4,
        "max_input_len": length,
        "max_seq_len": length + 64,
        "max_num_tokens": 4 * length,
        "options": {"device": arguments.device},
    }
    load = {"workload": {"input_tokens": 2, "output_tokens": 2}}
    gates = {"text_tokens": arguments.text_tokens}
    return parse_spec(
        {"model": {"source": str(model)}, "engine": engine, "benchmark": load, "gates": gates}
    )


def draw_weights(path: Path, seed: int) -> None:
    """Other weights of the same spread, sharpened; the first seed keeps the file's own."""
    source = np.random.default_rng(seed)
    tensors = {}
    for name, given in load_file(path).items():
        wide = given.astype(np.float32)
        if seed and wide.ndim > 1:
            wide = source.normal(0.0, float(wide.std()), wide.shape).astype(np.float32)
        tensors[name] = (wide * (SHARPENED if "_proj.weight" in name else 1.0)).astype(
            ml_dtypes.bfloat16
        )
    save_file(tensors, path.with_suffix(".new"), metadata={"format": "pt"})
    path.with_suffix(".new").replace(path)


def distributions(verdicts: list[Verdict]) -> dict[str, list[float]]:
    read = [v for v in verdicts if v.perplexity is not None]
    return {
        "rounding_ratio": [v.rounding_ratio for v in verdicts if v.rounding_ratio is not None],
        "worst_step_ratio": [
            v.worst_step_ratio for v in verdicts if v.worst_step_ratio is not None
        ],
        "worst_over_whole": [
            v.worst_step_ratio / v.rounding_ratio
            for v in verdicts
            if v.worst_step_ratio and v.rounding_ratio
        ],
        "kl_ratio": [v.kl / v.reference_kl for v in read if v.kl and v.reference_kl],
        "kl_nats": [v.kl for v in read if v.kl is not None],
        "top1_disagreement": [1 - v.top1_agreement for v in read if v.top1_agreement is not None],
        "unexplained_disagreement": [
            1 - v.explained_agreement for v in read if v.explained_agreement is not None
        ],
        "perplexity_difference": [
            math.expm1(abs(math.log(v.perplexity / v.reference_perplexity)))
            for v in read
            if v.perplexity and v.reference_perplexity
        ],
    }


def quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{q * 100:g}": round(float(np.quantile(values, q)), 6) for q in QUANTILES}


def show(title: str, verdicts: list[Verdict]) -> None:
    print(f"\n{title}: {len(verdicts)} verdicts, {sum(not v.passed for v in verdicts)} failed")
    print(f"{'':26}" + "".join(f"{f'p{q * 100:g}':>12}" for q in QUANTILES))
    for metric, values in distributions(verdicts).items():
        if values:
            row = "".join(f"{value:12.4g}" for value in quantiles(values).values())
            print(f"{metric:26}{row}   n={len(values)}")


if __name__ == "__main__":
    main()
