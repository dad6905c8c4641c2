"""What the stand-in's `convert_checkpoint.py` do: Llama and Qwen with trtforge's own converter.

Others get a checkpoint of one small tensor. Faults: convert-missing-rank, convert-truncated,
convert-other-world (all three end with 0), convert-split, convert-unknown-argument,
convert-remote-code, convert-disk-full, convert-host-oom, convert-broken-weights, convert-hang.
"""

import argparse
import errno
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

from tensorrt_llm import run_faults
from tensorrt_llm.version import __version__


def main() -> None:
    print(f"[TensorRT-LLM] TensorRT-LLM version: {__version__}", flush=True)
    arguments = _arguments()
    _fail_early()
    config = json.loads((arguments.model_dir / "config.json").read_text())
    if (arguments.model_dir / "modeling_own.py").exists() or "auto_map" in config:
        sys.exit("a model's own code was shown to the script")
    if config["model_type"] in ("llama", "mistral", "qwen2"):
        _with_our_converter(arguments)
    else:
        _small(arguments, config)
    ranks = arguments.tp_size * arguments.pp_size
    for _ in range(ranks):
        print("Total time of reading and converting: 0.250 s")
        print("Total time of saving checkpoint: 0.125 s", flush=True)
    _spoil(arguments.output_dir, ranks)
    print("Total time of converting checkpoints: 00:00:00")


def _with_our_converter(arguments: argparse.Namespace) -> None:
    from trtforge.checkpoint import Target, convert

    line = ".".join(__version__.split(".")[:2])
    target = Target(
        version=line,
        dtype=arguments.dtype,
        tp=arguments.tp_size,
        pp=arguments.pp_size,
        use_parallel_embedding=arguments.use_parallel_embedding,
        embedding_sharding_dim=arguments.embedding_sharding_dim,
    )
    convert(arguments.model_dir, arguments.output_dir, target)


def _small(arguments: argparse.Namespace, config: "dict[str, Any]") -> None:
    arguments.output_dir.mkdir(parents=True)
    ranks = arguments.tp_size * arguments.pp_size
    written = {
        "architecture": config["architectures"][0],
        "dtype": arguments.dtype,
        "num_hidden_layers": 1,
        "mapping": {
            "world_size": ranks,
            "tp_size": arguments.tp_size,
            "pp_size": arguments.pp_size,
        },
        "quantization": {"quant_algo": None},
    }
    name = "transformer.layers.0.attention.qkv.weight"
    header = json.dumps({name: {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    for rank in range(ranks):
        data = struct.pack("<Q", len(header)) + header + bytes(4)
        (arguments.output_dir / f"rank{rank}.safetensors").write_bytes(data)
    (arguments.output_dir / "config.json").write_text(json.dumps(written))


def _spoil(output_dir: Path, ranks: int) -> None:
    last = output_dir / f"rank{ranks - 1}.safetensors"
    if run_faults.asked("convert-missing-rank"):
        last.unlink()
    if run_faults.asked("convert-truncated"):
        os.truncate(last, last.stat().st_size - 2)
    if run_faults.asked("convert-other-world"):
        config = json.loads((output_dir / "config.json").read_text())
        config["mapping"]["world_size"] += 1
        (output_dir / "config.json").write_text(json.dumps(config))


def _fail_early() -> None:
    asked = run_faults.asked
    if asked("convert-split"):
        raise AssertionError("num_attention_heads must be divisible by tp_size")
    if asked("convert-remote-code"):
        raise ValueError(
            "The checkpoint you are trying to load has model type `mine` but Transformers does not "
            "recognize this architecture."
        )
    if asked("convert-broken-weights"):
        raise RuntimeError(
            "SafetensorError: Error while deserializing header: incomplete metadata, file not "
            "fully covered"
        )
    if asked("convert-disk-full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if asked("convert-host-oom"):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked("convert-hang"):
        time.sleep(3600)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tp_size", type=int, default=1)
    if not run_faults.asked("convert-unknown-argument"):
        parser.add_argument("--pp_size", type=int, default=1)
    parser.add_argument("--use_parallel_embedding", action="store_true")
    parser.add_argument("--embedding_sharding_dim", type=int, default=0)
    parser.add_argument("--gpt_variant")
    return parser.parse_args()
