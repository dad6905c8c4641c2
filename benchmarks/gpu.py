"""The aoti engine on one NVIDIA GPU: builds, checks and times it in one call.

Makes a LLaMA-shaped model with random weights (or takes one), converts and compiles it with the
project's own drivers, compares every token with the original in eager PyTorch, and measures decode
and prefill against what the same GPU copies and multiplies in the same run, and against
`torch.compile(mode="reduce-overhead")` of the transformers model.

    python benchmarks/gpu.py                                   # Llama-2-7B's shape, 8 to 10 minutes
    python benchmarks/gpu.py --shape tinyllama-1.1b --batch 1 8
    python benchmarks/gpu.py --model path/to/SmolLM2-135M --skip baseline

Prints one table, and as its last line one JSON object. Exit code 1: a token differs by more than
rounding explains. The formulas are in docs/performance.md.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtforge.canonical import digest
from trtforge.checkpoint import convert
from trtforge.engines.driver_process import RUN_ENVIRONMENT, run_driver
from trtforge.progress import ignore

PHASES = Path(__file__).with_name("gpu_phases.py")
# hidden, layers, heads, kv heads, intermediate, vocabulary
SHAPES = {
    "tiny": (256, 4, 4, 2, 704, 2048),
    "tinyllama-1.1b": (2048, 22, 32, 4, 5632, 32000),
    "llama-2-7b": (4096, 32, 32, 32, 11008, 32000),
}
RESULTS = (
    *("decode_b1_of_limit", "decode_b32_of_limit", "prefill_of_matmul", "over_torch_compile"),
    *("compile_cold_s", "compile_warm_s", "load_s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--model", type=Path, help="a Hugging Face directory instead of --shape")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--decode", choices=("kernels", "graphs"), default="kernels")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try it")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=None, help="of the inputs; drawn if not given")
    parser.add_argument("--skip", nargs="*", choices=("check", "baseline", "warm"), default=[])
    parser.add_argument("--work", type=Path, help="where to work; a temporary directory if absent")
    asked = parser.parse_args()
    asked.seed = random.SystemRandom().randrange(1 << 31) if asked.seed is None else asked.seed
    work = asked.work or Path(tempfile.mkdtemp(prefix="trtforge-gpu-"))
    work.mkdir(parents=True, exist_ok=True)
    run = Run(asked, work.resolve())
    try:
        wrong = run.all()
    finally:
        # Also what was found until an interruption.
        print(json.dumps(run.results), flush=True)
        if asked.work is None:
            shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if wrong else 0)


class Run:
    """One run of the script; every phase prints its lines of the table when it is done."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.asked = asked
        self.work = work
        self.model = asked.model.resolve() if asked.model else work / "model"
        self.results: dict[str, Any] = dict.fromkeys(RESULTS)
        self.config: dict[str, Any] = {}
        self.started = time.monotonic()

    def all(self) -> bool:
        """Every phase; whether a token was wrong."""
        a = self.asked
        ceilings = self.phase("ceilings", {})
        self.row("machine", ceilings["machine"])
        self.row("inputs", f"seed {a.seed}, {a.input_tokens} tokens in, {a.output_tokens} out")
        self.row("copy", f"{ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s")
        self.row("bf16 matrix product", f"{ceilings['matmul_flops'] / 1e12:.0f} TFLOP/s")
        if not a.model:
            self.phase("weights", {"model_dir": str(self.model), "shape": SHAPES[a.shape]})
        self.config = json.loads((self.model / "config.json").read_text())
        convert(self.model, self.work / "checkpoint")
        self.results["compile_cold_s"] = round(self.build("engine", None), 2)
        self.row("compile, cold", f"{self.results['compile_cold_s']:.1f} s")
        self.time_load()
        timed = self.time_engine(ceilings)
        wrong = False if "check" in a.skip else self.check()
        if "warm" not in a.skip:
            self.results["compile_warm_s"] = round(self.build("again", "engine.cache"), 2)
            self.row("compile, model.cache", f"{self.results['compile_warm_s']:.1f} s")
            shutil.rmtree(self.work / "again")
        if "baseline" not in a.skip:
            self.baseline(timed)
        return wrong

    def build(self, name: str, cache: str | None) -> float:
        a = self.asked
        shutil.rmtree(self.work / "inductor", ignore_errors=True)
        (self.work / "inductor").mkdir()
        longest = max(a.input_tokens, a.prefill_tokens)
        built = run_driver(
            "trtforge.engines.aoti.build_driver",
            {
                "checkpoint_dir": str(self.work / "checkpoint"),
                "engine_dir": str(self.work / name),
                "cache_in": str(self.work / cache) if cache else None,
                "cache_out": str(self.work / f"{name}.cache"),
                "device": a.device,
                "decode": a.decode if a.device == "cuda" else "graphs",
                "toolchain_key": digest({"benchmark": "gpu"}),
                "limits": {
                    "max_batch_size": max(a.batch),
                    "max_input_len": longest,
                    "max_seq_len": longest + a.output_tokens,
                    "max_num_tokens": max(longest, max(a.batch) * a.input_tokens),
                },
            },
            work_dir=self.work,
            timeout_s=1800,
            environment={
                "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
                "TRITON_CACHE_DIR": str(self.work / "inductor" / "triton"),
                "TORCHINDUCTOR_COMPILE_THREADS": "1",
            },
            on_progress=ignore,
        )
        if cache and not all(graph["cached"] for graph in built["graphs"]):
            self.row("model.cache", "did not hold every graph")
        for graph in built["graphs"]:
            if not graph["cached"]:
                self.row(f"  graph {graph['name']}", f"{graph['seconds']:.1f} s")
        return float(built["seconds"])

    def engine(self, jobs: list[dict[str, Any]]) -> dict[str, Any]:
        return run_driver(
            "trtforge.engines.aoti.run_driver",
            {
                "engine_dir": str(self.work / "engine"),
                "threads": 0,
                "jobs": jobs,
                "logits_dir": str(self.work),
            },
            work_dir=self.work,
            timeout_s=1800,
            environment=RUN_ENVIRONMENT,
        )

    def time_load(self) -> None:
        started = time.monotonic()
        job = {"id": "first", "prompts": [[1] * self.asked.input_tokens], "max_new_tokens": 1}
        loaded = self.engine([job])
        self.results["load_s"] = round(time.monotonic() - started, 2)
        self.row(
            "load to first token",
            f"{self.results['load_s']:.1f} s (of it the engine {loaded['load_s']:.1f} s)",
        )

    def time_engine(self, ceilings: dict[str, Any]) -> dict[int, float]:
        """Seconds between tokens, by batch."""
        a, source = self.asked, random.Random(self.asked.seed)
        common = {"warmups": 2, "repeats": 5}
        jobs = [
            {
                "id": f"batch-{batch}",
                "prompts": self.prompts(source, [a.input_tokens] * batch),
                "max_new_tokens": a.output_tokens,
                **common,
            }
            for batch in a.batch
        ]
        long = {
            "id": "prefill",
            "prompts": self.prompts(source, [a.prefill_tokens]),
            "max_new_tokens": 1,
            **common,
        }
        outputs = {o["id"]: o for o in self.engine([*jobs, long])["outputs"]}
        weight_bytes, kv_bytes = self.read_bytes()
        between: dict[int, float] = {}
        for job in jobs:
            batch = len(job["prompts"])
            between[batch] = statistics.median(
                (run[-1] - run[0]) / (len(run) - 1) for run in outputs[job["id"]]["step_s"]
            )
            # Every token between the first and the last reads the positions before it.
            in_use = a.input_tokens + a.output_tokens / 2
            read = weight_bytes + batch * in_use * kv_bytes
            limit_s = read / ceilings["copy_bytes_per_s"]
            of_limit = round(limit_s / between[batch], 4)
            if batch in (1, 32):
                self.results[f"decode_b{batch}_of_limit"] = of_limit
            self.row(
                f"decode, batch {batch}",
                f"{between[batch] * 1e3:.3f} ms a step, {batch / between[batch]:.0f} tokens/s, "
                f"{of_limit:.3f} of the limit ({limit_s * 1e3:.3f} ms)",
            )
        first_s = statistics.median(run[0] for run in outputs["prefill"]["step_s"])
        rate = self.prefill_flops() / first_s
        self.results["prefill_of_matmul"] = round(rate / ceilings["matmul_flops"], 4)
        self.row(
            f"prefill of {a.prefill_tokens}",
            f"{first_s * 1e3:.1f} ms, {rate / 1e12:.0f} TFLOP/s, "
            f"{self.results['prefill_of_matmul']:.3f} of the matrix product",
        )
        return between

    def check(self) -> bool:
        """Compare every token of every batch with the original model's; whether any is wrong."""
        a, source = self.asked, random.Random(self.asked.seed + 1)
        jobs = []
        for batch in a.batch:
            lengths = [source.randint(4, a.input_tokens) for _ in range(batch)]
            jobs.append(
                {
                    "id": f"check-{batch}",
                    "prompts": self.prompts(source, lengths),
                    "max_new_tokens": a.output_tokens,
                    "logits": True,
                }
            )
        outputs = self.engine(jobs)["outputs"]
        found = self.phase(
            "check",
            {
                "model_dir": str(self.model),
                "logits_dir": str(self.work),
                "jobs": [
                    {"prompts": job["prompts"], "tokens": out["tokens"], "logits": out["logits"]}
                    for job, out in zip(jobs, outputs, strict=True)
                ],
            },
        )
        for batch, facts in zip(a.batch, found["batches"], strict=True):
            self.row(
                f"check, batch {batch}",
                f"{facts['equal']} of {facts['tokens']} tokens are eager's, {facts['excused']} "
                f"differ by a gap below rounding (largest {facts['largest_gap']:.4f}), "
                f"{facts['wrong']} are wrong; error over eager's own {facts['error_ratio']:.2f}",
            )
        return any(facts["wrong"] or facts["error_ratio"] > 2 for facts in found["batches"])

    def baseline(self, between: dict[int, float]) -> None:
        a = self.asked
        ratios: dict[str, float] = {}
        self.results["over_torch_compile"] = ratios
        for batch in a.batch:
            asked = {
                "model_dir": str(self.model),
                "batch": batch,
                "input_tokens": a.input_tokens,
                "output_tokens": a.output_tokens,
                "seed": a.seed,
            }
            facts = self.phase("baseline", asked)
            ratios[str(batch)] = round(facts["step_s"] / between[batch], 3)
            self.row(
                f"torch.compile, batch {batch}",
                f"{facts['step_s'] * 1e3:.3f} ms a step (eager {facts['eager_s'] * 1e3:.1f}); "
                f"the engine is {ratios[str(batch)]:.2f} times as fast",
            )

    def prompts(self, source: random.Random, lengths: Sequence[int]) -> list[list[int]]:
        vocab = self.config["vocab_size"]
        return [[source.randrange(vocab) for _ in range(length)] for length in lengths]

    def read_bytes(self) -> tuple[int, int]:
        """What a decode step reads: all weights but the embedding; and of one cached position."""
        with (self.work / "checkpoint" / "rank0.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        weights = sum(
            entry["data_offsets"][1] - entry["data_offsets"][0]
            for name, entry in header.items()
            if name not in ("__metadata__", "transformer.vocab_embedding.weight")
        )
        engine = json.loads((self.work / "engine" / "config.json").read_text())
        build = engine["build_config"]
        # One position more than max_seq_len is kept.
        return weights, build["kv_cache_bytes_per_sequence"] // (build["max_seq_len"] + 1)

    def prefill_flops(self) -> float:
        """Of the layers' products and of causal attention; the output matrix sees one token."""
        c, tokens = self.config, self.asked.prefill_tokens
        hidden, heads = c["hidden_size"], c["num_attention_heads"]
        head = c.get("head_dim") or hidden // heads
        attention = (2 * heads + 2 * c["num_key_value_heads"]) * head * hidden
        weights = attention + 3 * hidden * c["intermediate_size"]
        causal = 4 * heads * head * tokens * tokens / 2
        flops: float = c["num_hidden_layers"] * (2 * weights * tokens + causal)
        return flops

    def phase(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Run a phase of gpu_phases.py in a process of its own, which leaves the GPU empty."""
        answer = self.work / f"{name}.json"
        done = subprocess.run(
            [sys.executable, str(PHASES), name, str(answer)],
            input=json.dumps(request),
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"the phase {name} ended with {done.returncode}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found

    def row(self, what: str, found: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {what:24} {found}", flush=True)


if __name__ == "__main__":
    main()
