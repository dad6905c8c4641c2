"""How fast is `trtforge convert`, compared with copying the same bytes?

Makes a random Llama-2 of the wanted size in a temporary directory, in shards as on the Hub, and
times, interleaved in one run:

* `cp` of the weight files, ended by fsync;
* `convert` at tp 1, 2 and 4, ended by SHA-256 of every rank file, fsync and rename;
* loading the model whole, joining q, k, v, and saving it with the safetensors library, ended by
  fsync (upstream's way, without torch; only where it fits into memory);
* `convert` of a float32 model of as many bytes, against `cp` of those.

Everything lies on one file system (`--dir`). `--cold` empties the page cache before each
measurement (root only); otherwise what fits into it is read from there by all alike. `--size 7b`
needs 70 GB of disk. The last line of the output is one JSON object; ratios are medians over
medians, smaller is better.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from trtforge.checkpoint import Target, convert
from trtforge.checkpoint.safetensors_io import encode_header, size_in_bytes

GB = 10**9
# hidden, intermediate, heads, key/value heads, layers; 1b is TinyLlama's shape, 7b Llama-2-7b's.
SIZES = {
    "tiny": (512, 1408, 8, 8, 8),
    "1b": (2048, 5632, 32, 4, 22),
    "7b": (4096, 11008, 32, 32, 32),
}
VOCAB = 32000
SHARD_BYTES = 5 * GB
TENSOR_PARALLEL = (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--cold", action="store_true", help="empty the page cache each time (root)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_child(*args.child)))
        return
    with tempfile.TemporaryDirectory(prefix="convert-", dir=args.dir) as name:
        compare(Path(name), args.size, args.rounds, cold=args.cold)


def compare(work: Path, size: str, rounds: int, *, cold: bool) -> None:
    print(f"machine: {cpu_name()}, {os.cpu_count()} cores, {ram_bytes() / GB:.0f} GB of memory")
    print(f"system:  {platform.platform()}, load average {os.getloadavg()[0]:.2f}")
    model_bytes = make_model(work / "bf16", SIZES[size], "BF16")
    ways = ["cp", *(f"tp{tp}" for tp in TENSOR_PARALLEL)]
    # The tensors, a second time joined, and a third time as bytes to be written.
    if (needed := 2.3 * model_bytes) < psutil.virtual_memory().available:
        ways.append("whole")
    else:
        print(f"loading the model whole is not run: it needs {needed / GB:.0f} GB of memory")
    print(
        f"model:   {size}, {model_bytes / GB:.2f} GB of bfloat16, page cache {cold_or_warm(cold)}"
    )
    seconds, peaks = measure(work, "bf16", ways, rounds, cold=cold)
    print_table(seconds, peaks, model_bytes)
    shutil.rmtree(work / "bf16")
    float32_bytes = make_model(work / "fp32", halved(SIZES[size]), "F32")
    print(f"model:   half the layers, {float32_bytes / GB:.2f} GB of float32")
    seconds32, peaks32 = measure(work, "fp32", ["cp", "tp1"], rounds, cold=cold)
    print_table(seconds32, peaks32, float32_bytes)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    medians32 = {way: statistics.median(times) for way, times in seconds32.items()}
    converting = [peaks[f"tp{tp}"] for tp in TENSOR_PARALLEL] + [peaks32["tp1"]]
    figures = {f"tp{tp}_over_cp": medians[f"tp{tp}"] / medians["cp"] for tp in TENSOR_PARALLEL}
    figures["fp32_over_cp"] = medians32["tp1"] / medians32["cp"]
    figures["peak_rss_mb"] = max(converting)
    figures["whole_over_cp"] = medians["whole"] / medians["cp"] if "whole" in medians else None
    figures["whole_peak_rss_mb"] = peaks.get("whole")
    rounded = {name: round(f, 3) if f is not None else None for name, f in figures.items()}
    print(json.dumps({"size": size, "cold": cold, "rounds": rounds, **rounded}))


def measure(
    work: Path, model: str, ways: list[str], rounds: int, *, cold: bool
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every round, and the peak RSS in MB, of each way."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, float] = {}
    out = work / "out"
    for _ in range(rounds):
        for way in ways:
            os.sync()  # what an earlier round left unwritten must not be paid for here
            if cold:
                Path("/proc/sys/vm/drop_caches").write_text("1")
            command = [sys.executable, __file__, "--child", way, str(work / model), str(out)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout)
            seconds[way].append(result["seconds"])
            peaks[way] = max(peaks.get(way, 0.0), result["peak_rss_mb"])
            shutil.rmtree(out)
    return seconds, peaks


def run_child(way: str, model: str, out: str) -> dict[str, float]:
    """One measurement, in a process of its own for its peak RSS."""
    start = time.perf_counter()
    if way == "cp":
        run_cp(Path(model), Path(out))
    elif way == "whole":
        convert_whole(Path(model), Path(out))
    else:
        convert(Path(model), Path(out), Target(tp=int(way.removeprefix("tp"))))
    return {"seconds": time.perf_counter() - start, "peak_rss_mb": peak_rss_mb()}


def run_cp(model: Path, out: Path) -> None:
    out.mkdir()
    weights = sorted(map(str, model.glob("*.safetensors")))
    subprocess.run(["cp", *weights, str(out)], check=True)
    sync_files(out)


def convert_whole(model: Path, out: Path) -> None:
    """What loading everything costs; the result has the names and order of the source."""
    from safetensors.numpy import load_file, save_file

    tensors: dict[str, Any] = {}
    for shard in sorted(model.glob("*.safetensors")):
        tensors |= load_file(shard)
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("q_proj", "qkv")] = np.concatenate(parts)
    out.mkdir()
    save_file(tensors, out / "rank0.safetensors")
    sync_files(out)


def sync_files(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def make_model(directory: Path, shape: tuple[int, ...], dtype: str) -> int:
    """Write a model of normally distributed weights; returns the bytes of its weight files."""
    hidden, intermediate, heads, kv_heads, layers = shape
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": 4096,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, dims in tensors_of(shape):
        size = size_in_bytes(dtype, dims)
        if filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = dims
        filled += size
    numbers = np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32)
    block = numbers.tobytes() if dtype == "F32" else numbers.view(np.uint16)[1::2].tobytes()
    weight_map = {}
    for index, tensors in enumerate(shards):
        file = directory / f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        with file.open("wb") as stream:
            stream.write(encode_header((n, dtype, tensors[n]) for n in sorted(tensors)))
            for name in sorted(tensors):
                left = size_in_bytes(dtype, tensors[name])
                while left:
                    left -= stream.write(block[: min(left, len(block))])
        weight_map |= dict.fromkeys(tensors, file.name)
    index_file = directory / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def tensors_of(shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate, heads, kv_heads, layers = shape
    kv = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (VOCAB, hidden)
    for index in range(layers):
        for name, dims in {
            "input_layernorm.weight": (hidden,),
            "mlp.down_proj.weight": (hidden, intermediate),
            "mlp.gate_proj.weight": (intermediate, hidden),
            "mlp.up_proj.weight": (intermediate, hidden),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
        }.items():
            yield f"model.layers.{index}.{name}", dims
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCAB, hidden)


def halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] // 2)


def print_table(seconds: dict[str, list[float]], peaks: dict[str, float], model_bytes: int) -> None:
    cp = statistics.median(seconds["cp"])
    print(f"{'':8}{'median s':>10}{'min s':>8}{'max s':>8}{'GB/s':>8}{'over cp':>10}{'RSS MB':>9}")
    for way, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{way:8}{median:10.2f}{min(times):8.2f}{max(times):8.2f}"
            f"{model_bytes / median / GB:8.2f}{median / cp:9.2f}×{peaks[way]:9.0f}"
        )


def cold_or_warm(cold: bool) -> str:
    return "emptied before each measurement" if cold else "left as it is"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def ram_bytes() -> int:
    return psutil.virtual_memory().total


def peak_rss_mb() -> float:
    # Not ru_maxrss: across fork and exec it starts from the parent's peak.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
