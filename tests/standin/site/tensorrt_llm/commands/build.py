"""`trtllm-build`, compiling nothing: the same arguments, lines, files and ways to fail."""

import json
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import tensorrt
from trtllm_table_parser import make_parser, table_of

from tensorrt_llm import faults
from tensorrt_llm.builder import Builder, save_engine
from tensorrt_llm.commands.in_effect import engine_config
from tensorrt_llm.logger import logger
from tensorrt_llm.version import __version__

_SHARE_OF_CHECKPOINT = 0.9


def build_and_save(rank, gpu_id, ckpt_dir, build_config, output_dir, log_level, model_config, _cls):
    del gpu_id
    logger.set_level(log_level)
    faults.in_worker()
    faults.while_loading()
    started = time.time()
    weights = (Path(ckpt_dir) / f"rank{rank}.safetensors").stat().st_size
    builder = Builder()
    builder_config = builder.create_builder_config(build_config["input_timing_cache"])
    network = {
        "shapes": _shapes(model_config, build_config, rank),
        "engine_bytes": int(weights * _SHARE_OF_CHECKPOINT),
    }
    logger.info(
        f"Total time of constructing network from module object {time.time() - started} seconds"
    )
    engine = builder.build_engine(network, builder_config)
    if rank == 0 and not faults.asked("no-cache"):
        builder.save_timing_cache(builder_config, build_config["output_timing_cache"])
    logger.info("Build phase peak memory: 1024.00 MB, children: 16.00 MB")
    _save(rank, engine, build_config, output_dir, model_config)
    return True


def parallel_build(model_config, ckpt_dir, build_config, output_dir, workers, log_level):
    world_size = _world_size(model_config)
    arguments = (ckpt_dir, build_config, output_dir, log_level, model_config, None)
    if workers == 1:
        for rank in range(world_size):
            assert build_and_save(rank, rank % workers, *arguments), (
                "Engine building failed, please check error log."
            )
        return
    exceptions = []
    with ProcessPoolExecutor(mp_context=get_context("spawn"), max_workers=workers) as pool:
        futures = [
            pool.submit(build_and_save, rank, rank % workers, *arguments)
            for rank in range(world_size)
        ]
        for future in as_completed(futures):
            try:
                future.result()
            except Exception as error:
                traceback.print_exc()
                exceptions.append(error)
    assert not exceptions, "Engine building failed, please check error log."


def main():
    print(f"[TensorRT-LLM] TensorRT-LLM version: {__version__} (stand-in)", flush=True)
    faults.at_start()
    without = ("gemm_plugin",) if faults.asked("unknown-option") else ()
    args = make_parser(__version__, without).parse_args()
    if (args.gather_context_logits or args.gather_all_token_logits) and args.max_draft_len > 0:
        raise RuntimeError("Gather context logits is not support with draft len > 0.")
    if args.multiple_profiles == "enable" and args.opt_num_tokens is not None:
        raise RuntimeError("multiple_profiles is enabled, while opt_num_tokens is set.")
    if table_of(__version__) != "0.16" and args.streamingllm == "enable":
        raise AssertionError("streamingllm is not supported")
    logger.set_level(args.log_level)
    started = time.time()
    if faults.asked("no-files"):
        return
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    gpus = 0 if faults.asked("no-gpu") else int(os.environ.get("TRTFORGE_STANDIN_GPUS", "1"))
    # As upstream: one worker stays one, GPU or not; more than one without a GPU becomes none.
    workers = 1 if args.workers == 1 else min(gpus, args.workers)
    model_config = json.loads((Path(args.checkpoint_dir) / "config.json").read_text())
    parallel_build(
        model_config,
        args.checkpoint_dir,
        engine_config(args, model_config, logger),
        args.output_dir,
        workers,
        args.log_level,
    )
    clock = time.strftime("%H:%M:%S", time.gmtime(time.time() - started))
    logger.info(f"Total time of building all engines: {clock}")


def _save(rank, engine_bytes, build_config, output_dir, model_config):
    world_size = _world_size(model_config)
    if rank == 0 and not faults.asked("no-config"):
        told = {"version": __version__, "pretrained_config": model_config}
        if faults.asked("other-world"):
            mapping = {"world_size": 2 * world_size, "tp_size": 2 * world_size, "pp_size": 1}
            told["pretrained_config"] = {**model_config, "mapping": mapping}
        if faults.asked("clip"):
            build_config = {**build_config, "max_seq_len": build_config["max_seq_len"] - 1}
        text = json.dumps({**told, "build_config": build_config}, indent=4)
        if faults.asked("rubbish-config"):
            text = text[: len(text) // 2]
        (Path(output_dir) / "config.json").write_text(text)
    last = rank == world_size - 1
    if last and faults.asked("missing-rank"):
        return
    header = {
        "format": 1,
        "tensorrt": tensorrt.__version__,
        "gpu_name": "Stand-in GPU",
        "compute_capability": "9.0",
        "rank": rank,
        "world_size": world_size,
    }
    save_engine(output_dir, rank, engine_bytes, header)
    if last and faults.asked("empty-rank"):
        os.truncate(Path(output_dir) / f"rank{rank}.engine", 0)
    if build_config["plugin_config"].get("manage_weights"):
        path = Path(output_dir) / f"rank{rank}_managed_weights.safetensors"
        path.write_bytes((2).to_bytes(8, "little") + b"{}")


def _world_size(model_config):
    mapping = model_config["mapping"]
    return mapping["world_size"]


def _shapes(model_config, build_config, rank):
    """What TensorRT would have to measure: the products of this rank, for these limits."""
    mapping = model_config["mapping"]
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    hidden, inner = model_config["hidden_size"], model_config["intermediate_size"]
    products = {"qkv": hidden, "dense": hidden, "fc": inner, "proj": inner}
    if rank // tp == pp - 1:
        products["lm_head"] = model_config["vocab_size"]
    if rank // tp == 0:
        products["embedding"] = model_config["vocab_size"]
    limits = f"{build_config['max_batch_size']}x{build_config['max_num_tokens']}"
    return {f"{name} {hidden}x{size}/{tp} at {limits}" for name, size in products.items()}


if __name__ == "__main__":
    # As a console script does: what worker processes are given is found by its module's name.
    from tensorrt_llm.commands import build

    sys.exit(build.main())
