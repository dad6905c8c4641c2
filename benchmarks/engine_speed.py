"""An aoti engine against eager PyTorch and against the memory bandwidth of the machine.

Makes a LLaMA-shaped model with random weights, converts and compiles it with the project's own
drivers, and runs both the engine and `transformers` on the same requests. The limit of a decode
step is the time to read every weight once, at the bandwidth that a large copy reaches here (bytes
read plus bytes written over seconds).

    python benchmarks/engine_speed.py --shape smollm2-135m --device cpu
    python benchmarks/engine_speed.py --shape tinyllama-1.1b --device cuda --batch 1 16

Ends with one line of JSON.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from trtforge.benchmark.metrics import measure
from trtforge.canonical import digest
from trtforge.checkpoint import convert
from trtforge.engines.driver_process import RUN_ENVIRONMENT, run_driver
from trtforge.progress import Progress

# hidden, layers, heads, kv heads, intermediate, vocabulary
SHAPES = {
    "tiny": (256, 4, 4, 2, 704, 2048),
    "smollm2-135m": (576, 30, 9, 3, 1536, 49152),
    "tinyllama-1.1b": (2048, 22, 32, 4, 5632, 32000),
    "llama-2-7b": (4096, 32, 32, 32, 11008, 32000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="engine and eager, alternating")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engine-speed-") as directory:
        figures = compare(asked, Path(directory))
    print_table(figures)
    print(json.dumps(figures))


def compare(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    write_model(work / "model", *SHAPES[asked.shape])
    say("converting")
    convert(work / "model", work / "checkpoint")
    weight_bytes = decode_bytes(work / "checkpoint")
    say("compiling")
    built = build(asked, work)
    source = random.Random(0)
    vocab = SHAPES[asked.shape][-1]
    jobs = [
        {
            "id": f"batch-{batch}",
            "prompts": [
                [source.randrange(vocab) for _ in range(asked.input_tokens)] for _ in range(batch)
            ],
            "max_new_tokens": asked.output_tokens,
            "warmups": 1,
            "repeats": 1,
        }
        for batch in asked.batch
    ]
    runs: dict[str, list[dict[str, Any]]] = {"engine": [], "eager": []}
    for number in range(asked.rounds):
        for who in runs:
            say(f"round {number + 1}: {who}")
            runs[who].append(run(who, asked, work, jobs))
    bandwidth = copy_bandwidth(asked.device)
    rows = []
    for index, job in enumerate(jobs):
        row: dict[str, Any] = {"batch": len(job["prompts"])}
        for who, done in runs.items():
            measured = [measure(job, result["outputs"][index]) for result in done]
            row[f"{who}_ttft_s"] = statistics.median(m.ttft_s for m in measured)
            row[f"{who}_itl_s"] = statistics.median(m.itl_s for m in measured)
            row[f"{who}_tokens_per_s"] = statistics.median(m.output_tokens_per_s for m in measured)
        row["speedup"] = row["engine_tokens_per_s"] / row["eager_tokens_per_s"]
        row["itl_limit_s"] = weight_bytes / bandwidth
        row["of_limit"] = row["itl_limit_s"] / row["engine_itl_s"]
        rows.append(row)
    return {
        "benchmark": "engine_speed",
        "shape": asked.shape,
        "device": asked.device,
        "machine": machine(asked.device),
        "input_tokens": asked.input_tokens,
        "output_tokens": asked.output_tokens,
        "rounds": asked.rounds,
        "compile_s": built["seconds"],
        "weight_bytes_per_step": weight_bytes,
        "copy_bandwidth_bytes_per_s": bandwidth,
        "rows": rows,
    }


def write_model(
    directory: Path, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int
) -> None:
    """A Hugging Face directory with random bf16 weights of plausible size."""
    directory.mkdir()
    head = hidden // heads
    make = np.random.default_rng(0)

    def weight(rows: int, columns: int) -> Any:
        # Uniform 8-bit noise is enough for speed, and quick to make for billions of weights.
        noise = make.integers(-127, 128, (rows, columns), dtype=np.int8)
        scale = np.float32(1.7 / 127 / columns**0.5)
        return (noise.astype(np.float32) * scale).astype(ml_dtypes.bfloat16)

    index: dict[str, str] = {}

    def save(name: str, tensors: dict[str, Any]) -> None:
        save_file(tensors, directory / name)
        index.update(dict.fromkeys(tensors, name))

    ones = np.ones(hidden, dtype=ml_dtypes.bfloat16)
    save(
        "model-head.safetensors",
        {
            "model.embed_tokens.weight": weight(vocab, hidden),
            "lm_head.weight": weight(vocab, hidden),
            "model.norm.weight": ones,
        },
    )
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        save(
            f"model-{layer:03}.safetensors",
            {
                f"{prefix}input_layernorm.weight": ones,
                f"{prefix}post_attention_layernorm.weight": ones,
                f"{prefix}self_attn.q_proj.weight": weight(heads * head, hidden),
                f"{prefix}self_attn.k_proj.weight": weight(kv_heads * head, hidden),
                f"{prefix}self_attn.v_proj.weight": weight(kv_heads * head, hidden),
                f"{prefix}self_attn.o_proj.weight": weight(hidden, heads * head),
                f"{prefix}mlp.gate_proj.weight": weight(inner, hidden),
                f"{prefix}mlp.up_proj.weight": weight(inner, hidden),
                f"{prefix}mlp.down_proj.weight": weight(hidden, inner),
            },
        )
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))


def decode_bytes(checkpoint: Path) -> int:
    """Bytes of weights that one decode step reads: all but the embedding table."""
    with (checkpoint / "rank0.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name not in ("__metadata__", "transformer.vocab_embedding.weight")
    )


def build(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    return run_driver(
        "trtforge.engines.aoti.build_driver",
        {
            "checkpoint_dir": str(work / "checkpoint"),
            "engine_dir": str(work / "engine"),
            "cache_in": None,
            "cache_out": str(work / "model.cache"),
            "device": asked.device,
            "toolchain_key": digest({"benchmark": True}),
            "limits": {
                "max_batch_size": max(asked.batch),
                "max_input_len": asked.input_tokens,
                "max_seq_len": asked.input_tokens + asked.output_tokens,
                "max_num_tokens": asked.input_tokens * max(asked.batch),
            },
        },
        work_dir=work,
        timeout_s=3600,
        environment={
            "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
            "TRITON_CACHE_DIR": str(work / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        },
        on_progress=lambda p: say(progress_line(p)),
    )


def run(
    who: str, asked: argparse.Namespace, work: Path, jobs: list[dict[str, Any]]
) -> dict[str, Any]:
    module, extra = {
        "engine": ("aoti", {"engine_dir": str(work / "engine")}),
        "eager": (
            "reference",
            {"model_dir": str(work / "model"), "dtype": "bfloat16", "device": asked.device},
        ),
    }[who]
    return run_driver(
        f"trtforge.engines.{module}.run_driver",
        {"jobs": jobs, "threads": 0, "logits_dir": str(work), **extra},
        work_dir=work,
        timeout_s=3600,
        environment=RUN_ENVIRONMENT,
    )


def copy_bandwidth(device: str) -> float:
    """Bytes read plus bytes written per second, best of some large copies, on the device."""
    code = """
import sys, time, torch
device = sys.argv[1]
x = torch.ones((2 << 30) if device == "cuda" else (256 << 20), dtype=torch.uint8, device=device)
y = torch.empty_like(x)
best = 0.0
for _ in range(10):
    if device == "cuda": torch.cuda.synchronize()
    t = time.perf_counter()
    y.copy_(x)
    if device == "cuda": torch.cuda.synchronize()
    best = max(best, 2 * x.numel() / (time.perf_counter() - t))
print(best)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, device], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def machine(device: str) -> str:
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    text = Path("/proc/cpuinfo").read_text()
    model = next((li.split(":")[1] for li in text.splitlines() if li.startswith("model name")), "")
    return f"{model.strip() or platform.machine()}, {text.count('processor')} cores"


def print_table(figures: dict[str, Any]) -> None:
    print(f"{figures['shape']} on {figures['machine']}; compiled in {figures['compile_s']:.1f} s")
    print("batch  TTFT ms (eager)   ITL ms (eager)   tok/s (eager)    speedup  of limit")
    for r in figures["rows"]:
        print(
            f"{r['batch']:5}  {r['engine_ttft_s'] * 1e3:7.1f} ({r['eager_ttft_s'] * 1e3:7.1f}) "
            f"{r['engine_itl_s'] * 1e3:6.2f} ({r['eager_itl_s'] * 1e3:6.2f}) "
            f"{r['engine_tokens_per_s']:7.1f} ({r['eager_tokens_per_s']:7.1f})  "
            f"{r['speedup']:6.2f}×  {r['of_limit']:6.2f}"
        )


def progress_line(progress: Progress) -> str:
    return f"  {progress.what} ({progress.done} of {progress.total})"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
