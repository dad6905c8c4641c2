"""How fast is `trtforge.checkpoint.convert`, compared with copying the same bytes?

Makes a bfloat16 model of Llama's shape in a temporary directory, then times, interleaved:

* `cp -r` of the model directory, which ends when the bytes are in the page cache;
* `cp -r` followed by fsync of every file, which ends when they are on the disk;
* SHA-256 of the weights alone, the floor for anything that returns a digest;
* `convert`, which ends when the checkpoint is hashed (SHA-256), synced to disk and renamed.

The source is in the page cache throughout. Run: `python benchmarks/convert_speed.py --gib 1`.
The last line of the output is one JSON object.
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
from pathlib import Path

import numpy as np

from trtforge.canonical import sha256_file
from trtforge.checkpoint import convert
from trtforge.checkpoint.safetensors_io import encode_header, size_in_bytes

GIB = 1 << 30
VOCAB, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 32000, 2048, 5632, 32, 4, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0, help="size of the model (default 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(convert_and_measure(*args.child)))
        return
    with tempfile.TemporaryDirectory(prefix="convert-speed-", dir=args.dir) as name:
        compare(Path(name), round(args.gib * GIB), args.rounds)


def compare(work: Path, size_bytes: int, rounds: int) -> None:
    model = work / "model"
    layers, model_bytes = make_model(model, size_bytes)
    print(f"model: {model_bytes / GIB:.2f} GiB, {layers} layers, bf16; {platform.platform()}")
    print(f"cores: {os.cpu_count()}, load average at the start: {os.getloadavg()[0]:.2f}")
    seconds: dict[str, list[float]] = {
        what: [] for what in ("cp -r", "cp -r + fsync", "sha256", "convert")
    }
    rss: list[dict[str, float]] = []
    for _ in range(rounds):
        for what, times in seconds.items():
            out = work / "out"
            os.sync()  # what an earlier round left unwritten must not be paid for here
            if what == "convert":
                rss.append(run_convert(model, out))
                times.append(rss[-1]["seconds"])
            elif what == "sha256":
                times.append(run_sha256(model))
                continue
            else:
                times.append(run_cp(model, out, sync=what.endswith("fsync")))
            shutil.rmtree(out)
    medians = {what: statistics.median(times) for what, times in seconds.items()}
    peak_mib = max(r["peak_rss_mib"] for r in rss)
    growth_mib = max(r["rss_growth_mib"] for r in rss)
    print(f"\n{'':16}{'median s':>10}{'min s':>8}{'max s':>8}{'GB/s':>8}{'ratio to cp':>13}")
    for what, times in seconds.items():
        print(
            f"{what:16}{medians[what]:10.3f}{min(times):8.3f}{max(times):8.3f}"
            f"{model_bytes / medians[what] / 1e9:8.2f}{medians[what] / medians['cp -r']:12.2f}×"
        )
    print(f"\npeak RSS of convert: {peak_mib:.0f} MiB, {growth_mib:.0f} MiB above its start")
    result = {
        "model_bytes": model_bytes,
        "rounds": rounds,
        "seconds": seconds,
        "ratio_to_cp": medians["convert"] / medians["cp -r"],
        "ratio_to_cp_fsync": medians["convert"] / medians["cp -r + fsync"],
        "peak_rss_mib": peak_mib,
        "rss_growth_mib": growth_mib,
    }
    print(json.dumps(result))


def make_model(directory: Path, size_bytes: int) -> tuple[int, int]:
    """Write a model of about `size_bytes`; returns its layers and bytes of weights."""
    layer = {
        "input_layernorm.weight": (HIDDEN,),
        "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
        "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    }
    embeddings = {"lm_head.weight": (VOCAB, HIDDEN), "model.embed_tokens.weight": (VOCAB, HIDDEN)}
    layer_bytes = sum(size_in_bytes("BF16", shape) for shape in layer.values())
    embedding_bytes = sum(size_in_bytes("BF16", shape) for shape in embeddings.values())
    layers = max(1, round((size_bytes - embedding_bytes) / layer_bytes))
    tensors: dict[str, tuple[int, ...]] = dict(embeddings)
    for index in range(layers):
        tensors |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    tensors["model.norm.weight"] = (HIDDEN,)
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 2048,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
    }
    (directory / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as stream:
        stream.write(encode_header((name, "BF16", shape) for name, shape in tensors.items()))
        for shape in tensors.values():
            stream.write(random.bytes(size_in_bytes("BF16", shape)))
    return layers, sum(size_in_bytes("BF16", shape) for shape in tensors.values())


def run_cp(model: Path, out: Path, *, sync: bool) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(model), str(out)], check=True)
    if sync:
        for path in out.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    return time.perf_counter() - start


def run_sha256(model: Path) -> float:
    start = time.perf_counter()
    sha256_file(model / "model.safetensors")
    return time.perf_counter() - start


def run_convert(model: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(model), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def convert_and_measure(model: Path, out: Path) -> dict[str, float]:
    before = peak_rss_mib()
    start = time.perf_counter()
    convert(model, out)
    seconds = time.perf_counter() - start
    after = peak_rss_mib()
    return {"seconds": seconds, "peak_rss_mib": after, "rss_growth_mib": after - before}


def peak_rss_mib() -> float:
    # Not ru_maxrss: across fork and exec it starts from the parent's peak.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
