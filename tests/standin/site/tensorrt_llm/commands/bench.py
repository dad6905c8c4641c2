"""`trtllm-bench`: the options of 0.16 and of 1.x, and what each of them reports.

Faults: bench-oom (out of GPU memory), bench-rubbish (a report that is no JSON), bench-no-report,
bench-hang.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tensorrt_llm import run_faults
from tensorrt_llm.version import __version__

_OLD = __version__.startswith("0.")


def main() -> None:
    arguments = _parser().parse_args()
    arguments.workspace.mkdir(parents=True, exist_ok=True)
    if not _OLD and arguments.backend != "tensorrt":
        sys.exit("RuntimeError: the PyTorch backend does not take an engine directory")
    config = json.loads((arguments.engine_dir / "config.json").read_text())
    if not (arguments.model_path / "config.json").is_file():
        sys.exit(f"OSError: {arguments.model_path} does not appear to have a config.json")
    requests = [json.loads(line) for line in arguments.dataset.read_text().splitlines()]
    if run_faults.asked("bench-oom"):
        sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    if run_faults.asked("bench-hang"):
        time.sleep(3600)
    longest = max(len(r["input_ids"]) + r["output_tokens"] for r in requests)
    limit = config["build_config"]["max_seq_len"]
    if longest > limit:
        sys.exit(f"RuntimeError: Engine supports a max sequence of {limit}.")
    _report_old(requests) if _OLD else _report(arguments, config, requests)


def _report(arguments: argparse.Namespace, config: "dict[str, Any]", requests: Any) -> None:
    outputs = sum(r["output_tokens"] for r in requests)
    report = {
        "engine": {
            "model": arguments.model,
            "engine_dir": str(arguments.engine_dir),
            "version": __version__,
            "backend": "TRT",
        },
        "world_info": {**config["pretrained_config"]["mapping"]},
        "request_info": {
            "num_requests": len(requests),
            "avg_num_concurrent_requests": 1.5,
            "avg_input_length": sum(len(r["input_ids"]) for r in requests) / len(requests),
            "avg_output_length": outputs / len(requests),
        },
        "performance": {
            "total_latency_ms": 500.0,
            "avg_request_latency_ms": 250.0,
            "request_throughput_req_s": len(requests) / 0.5,
            "system_output_throughput_tok_s": outputs / 0.5,
            "system_total_throughput_tok_s": 2 * outputs / 0.5,
            "output_throughput_per_user_tok_s": 10.0,
            "output_throughput_per_gpu_tok_s": outputs / 0.5,
        },
    }
    if arguments.command == "latency" or arguments.streaming:
        report["streaming_metrics"] = {"avg_ttft_ms": 20.0, "avg_tpot_ms": 5.0}
    text = json.dumps(report)
    if run_faults.asked("bench-rubbish"):
        text = text[: len(text) // 2]
    if not run_faults.asked("bench-no-report"):
        arguments.report_json.write_text(text)
    print("[TRT-LLM] [I] stand-in: these numbers measure nothing")


def _report_old(requests: "list[dict[str, Any]]") -> None:
    print(
        "===========================================================\n"
        "= PERFORMANCE OVERVIEW \n"
        "===========================================================\n"
        f"Number of requests:\t\t{len(requests)}\n"
        "Average Input Length (tokens):\t3.0000\n"
        "Average Output Length (tokens):\t4.0000\n"
        "Token Throughput (tokens/sec):\t16.0000\n"
        "Request Throughput (req/sec):\t4.0000\n"
        "Total Latency (ms):\t\t500.0000\n"
        "\n= STREAMING STATISTICS \n"
        "Average request latency (ms):\t\t250.0000\n"
        "Average time-to-first-token (ms):\t20.0000\n"
        "Average inter-token latency (ms):\t5.0000\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("trtllm-bench", allow_abbrev=False)
    parser.add_argument("--model", "-m", required=True)
    parser.add_argument("--model_path", type=Path)
    parser.add_argument("--workspace", "-w", type=Path, default=Path("/tmp"))
    modes = parser.add_subparsers(dest="command", required=True)
    for mode in ("throughput", "latency"):
        options = modes.add_parser(mode, allow_abbrev=False)
        options.add_argument("--engine_dir", type=Path, required=True)
        options.add_argument("--dataset", type=Path, required=True)
        options.add_argument("--kv_cache_free_gpu_mem_fraction", type=float, default=0.9)
        options.add_argument("--num_requests", type=int, default=0)
        if mode == "throughput":
            options.add_argument("--max_batch_size", type=int)
            options.add_argument("--max_num_tokens", type=int)
            options.add_argument("--streaming", action="store_true")
        if mode == "latency" or not _OLD:
            options.add_argument("--warmup", type=int, default=2)
        if not _OLD:
            options.add_argument("--backend", default="pytorch")
            options.add_argument("--concurrency", type=int, default=-1)
            options.add_argument("--report_json", type=Path)
    return parser


if __name__ == "__main__":
    main()
