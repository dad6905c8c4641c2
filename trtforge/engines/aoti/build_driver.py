"""Driver: compile a TensorRT-LLM checkpoint (any tp, pp 1) with PyTorch AOTInductor.

Request:  checkpoint_dir, engine_dir (must not exist), cache_in (path or null), cache_out,
          device, toolchain_key, limits {max_batch_size, max_input_len, max_seq_len,
          max_num_tokens}, decode ("graphs", or on a GPU "kernels")
Result:   files (names below engine_dir), graphs [{name, cached, seconds}], effective {...},
          warnings [...]

The engine directory holds `config.json` (`pretrained_config` and `build_config`, as TensorRT-LLM
names them), and for each rank `rank<r>.pt2` with every graph and `rank<r>.safetensors`, the
checkpoint's own weights. All ranks run the same code, so that their packages are one file.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from trtforge.engines.aoti.compile_cache import CompileCache, Entry
from trtforge.engines.driver_main import DriverError, Report, drive

# Precompiled headers cost 13 s and save 1.5 s a graph; the wrapper is not where time goes.
INDUCTOR_OPTIONS: dict[str, Any] = {
    "aot_inductor.package": True,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    # Fused multiply-add: half the instructions of the row-by-row products, and less rounding.
    "cpp.enable_floating_point_contract_flag": "fast",
}
# The number of threads would be compiled in; how many a rank has is known where it runs.
_SPLIT_OPTIONS: dict[str, Any] = {**INDUCTOR_OPTIONS, "cpp.dynamic_threads": True}
# The modules whose text decides what the graphs of an engine compute.
_CODE = {
    "graphs": ("graphs",),
    "kernels": (
        *("graphs", "step_graphs", "step_ops", "step_sizes", "step_state"),
        *("kernels", "attention_kernel", "tiles", "waiting"),
    ),
    "split": ("graphs", "split_graphs"),
}


def build(request: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch

    from trtforge.engines.aoti.graphs import LayerShape, Limits
    from trtforge.engines.aoti.split_graphs import shape_of_rank
    from trtforge.engines.aoti.step_sizes import STEP_INTERFACE

    checkpoint = Path(request["checkpoint_dir"])
    config = json.loads((checkpoint / "config.json").read_text())
    _refuse_what_is_not_supported(config)
    asked = request["limits"]
    limits = Limits(asked["max_batch_size"], asked["max_input_len"], asked["max_seq_len"])
    ranks = config["mapping"]["tp_size"]
    shape = shape_of_rank(LayerShape.from_checkpoint(config), ranks)
    device, decode = request["device"], request.get("decode", "graphs")
    if decode == "kernels" and device != "cuda":
        raise DriverError(
            "kernels-need-a-gpu",
            "the decode kernels are written for GPUs, and this engine is for a CPU",
            "Leave engine.options.decode out",
        )
    if decode == "kernels" and ranks > 1:
        raise DriverError(
            "kernels-need-one-rank",
            f"the decode kernels run on one GPU, and the checkpoint is split over {ranks}",
            "Leave engine.options.decode out, or use checkpoint.tp 1",
        )
    way = "split" if ranks > 1 else decode
    identities = _identities(shape, limits, device, way)

    cache, complaint = CompileCache(toolchain=request["toolchain_key"]), ""
    if request["cache_in"]:
        cache, complaint = CompileCache.load(Path(request["cache_in"]), request["toolchain_key"])
    code = _sha256(b"".join(_source(name) for name in _CODE[way]))
    options = _options(way)
    keys = {
        name: _sha256(
            json.dumps([request["toolchain_key"], code, options, facts], sort_keys=True).encode()
        )
        for name, facts in identities.items()
    }
    missing = [name for name, key in keys.items() if cache.get(key) is None]
    graphs = [{"name": name, "cached": name not in missing, "seconds": 0.0} for name in keys]
    done = len(keys) - len(missing)
    report("compiling graphs", done, len(keys))
    entries = {name: cache.get(key) for name, key in keys.items()}
    parallel = device == "cpu" or decode == "kernels"
    for name, files, seconds in _compile(missing, way, shape, limits, device, parallel):
        entries[name] = Entry(name, seconds, files)
        next(g for g in graphs if g["name"] == name)["seconds"] = seconds
        done += 1
        report(f"compiled {name}", done, len(keys))

    # Those of this build become the newest, so that they are not what a full cache drops.
    for name, entry in entries.items():
        assert entry is not None
        cache.put(keys[name], entry)

    engine_dir = Path(request["engine_dir"])
    engine_dir.mkdir(parents=True)
    _package(engine_dir / "rank0.pt2", entries)
    names = ["config.json"]
    for rank in range(ranks):
        package, weights = f"rank{rank}.pt2", f"rank{rank}.safetensors"
        if rank:
            _link(engine_dir / "rank0.pt2", engine_dir / package)
        _link(checkpoint / weights, engine_dir / weights)
        names += [package, weights]
    effective = {
        **asked,
        **({"tp": ranks} if ranks > 1 else {}),
        "device": device,
        "decode": decode,
        "graphs": list(keys),
        "kv_cache_type": "CONTINUOUS",
        "kv_cache_bytes_per_sequence": 2
        * config["num_hidden_layers"]
        * shape.kv_heads
        * limits.cache_len
        * shape.head_size
        * shape.torch_dtype.itemsize,
        "torch_version": torch.__version__,
        **({"step_interface": STEP_INTERFACE} if decode == "kernels" else {}),
    }
    engine_config = {
        "format": 1,
        "backend": "aoti",
        "version": torch.__version__,
        "pretrained_config": config,
        "build_config": effective,
    }
    (engine_dir / "config.json").write_text(json.dumps(engine_config, indent=2, sort_keys=True))
    cache.save(Path(request["cache_out"]))
    return {
        "files": names,
        "graphs": graphs,
        "effective": effective,
        "warnings": [complaint] if complaint else [],
    }


def _refuse_what_is_not_supported(config: dict[str, Any]) -> None:
    mapping = config["mapping"]
    if mapping["world_size"] != mapping["tp_size"]:
        raise DriverError(
            "world-size",
            f"the checkpoint's layers are shared out among {mapping['pp_size']} ranks, and aoti "
            "has all of them on each",
            "Convert with checkpoint.pp = 1; checkpoint.tp may be more",
        )
    if config.get("use_parallel_embedding") and mapping["tp_size"] > 1:
        raise DriverError(
            "parallel-embedding",
            "the checkpoint's input embedding is split, and aoti needs the whole on every rank",
            "Convert with checkpoint.use_parallel_embedding = false",
        )
    scaling = config.get("rotary_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise DriverError(
            "rope-scaling",
            f"rotary scaling {kind!r} is not known to the aoti backend",
            "It knows default, linear and llama3",
        )
    normalised = config.get("qk_layernorm") or config.get("qwen_type", "qwen2") != "qwen2"
    if config["hidden_act"] != "silu" or normalised:
        raise DriverError(
            "layer-shape",
            f"activation {config['hidden_act']!r}, or the normalised queries and keys of "
            f"{config['architecture']}, are not known to aoti",
            "It compiles LLaMA-shaped layers with silu",
        )


def _options(way: str) -> "dict[str, Any]":
    return _SPLIT_OPTIONS if way == "split" else INDUCTOR_OPTIONS


def _identities(shape: Any, limits: Any, device: str, way: str) -> "dict[str, dict[str, Any]]":
    """What decides the code of each graph that is needed; `way` is a key of `_CODE`."""
    from trtforge.engines.aoti import graphs, split_graphs

    if way == "split":
        parts = split_graphs.split_names(limits, device)
        return {name: split_graphs.split_identity(name, shape, limits) for name in parts}
    names = graphs.graph_names(limits, device)
    if way == "graphs":
        return {name: graphs.identity(name, shape, limits) for name in names}
    from trtforge.engines.aoti.step_sizes import step_identity, step_names

    steps = step_names(limits.max_batch_size)
    return {
        "prefill": graphs.identity("prefill", shape, limits),
        **{name: step_identity(name, shape, limits) for name in steps},
    }


def _link(original: Path, name: Path) -> None:
    try:
        os.link(original, name)
    except OSError:
        shutil.copyfile(original, name)


def _source(module: str) -> bytes:
    return Path(__file__).with_name(f"{module}.py").read_bytes()


def _compile(
    names: "list[str]", way: str, shape: Any, limits: Any, device: str, parallel: bool
) -> "Iterator[tuple[str, dict[str, bytes], float]]":
    workers = min(len(names), os.cpu_count() or 1) if parallel else 1
    if workers <= 1:
        for name in names:
            yield name, *_compile_one(name, way, shape, limits, device)
        return
    # Forked workers share the import of torch, but CUDA does not survive a fork.
    start = "spawn" if device == "cuda" else "fork"
    with ProcessPoolExecutor(workers, multiprocessing.get_context(start)) as pool:
        jobs = {pool.submit(_compile_one, n, way, shape, limits, device): n for n in names}
        for job in as_completed(jobs):
            try:
                files, seconds = job.result()
            except BrokenProcessPool as error:
                raise DriverError(
                    "compiler-killed",
                    f"a process compiling one of {', '.join(names)} was killed",
                    "Most likely the machine ran out of memory: free some, or ask for less",
                ) from error
            yield jobs[job], files, seconds


def _compile_one(
    name: str, way: str, shape: Any, limits: Any, device: str
) -> "tuple[dict[str, bytes], float]":
    import torch._inductor

    started = time.monotonic()
    if name.startswith("step_"):
        from trtforge.engines.aoti.step_graphs import export_step

        program = export_step(name, shape, limits, device)
    elif way == "split":
        from trtforge.engines.aoti.split_graphs import export_split

        program = export_split(name, shape, limits, device)
    else:
        from trtforge.engines.aoti.graphs import export_graph

        program = export_graph(name, shape, limits, device)
    inputs = program.example_inputs
    assert inputs is not None
    paths = torch._inductor.aot_compile(
        program.module(check_guards=False), *inputs, options=_options(way)
    )
    # The generated C++ goes along: it is small, and it is what one reads when a graph is wrong.
    assert isinstance(paths, list)
    files = {Path(str(path)).name: Path(str(path)).read_bytes() for path in paths}
    return files, time.monotonic() - started


def _package(path: Path, entries: "dict[str, Any]") -> None:
    from torch._inductor.package.package import package_aoti

    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        listed: dict[str, Any] = {}
        for name, entry in entries.items():
            folder = Path(scratch) / name
            folder.mkdir()
            for file_name, data in entry.files.items():
                (folder / file_name).write_bytes(data)
            listed[name] = [str(folder / file_name) for file_name in entry.files]
        package_aoti(str(path), listed)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    drive(build)
