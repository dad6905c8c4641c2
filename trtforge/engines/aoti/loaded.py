"""An engine directory, or one rank's part of it, in memory: weights, compiled graphs and rotary
tables, on one device."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trtforge.engines.aoti.graphs import LayerShape, Limits
from trtforge.engines.aoti.memory_rows import RESERVE_BYTES
from trtforge.engines.aoti.rotary import rotary_table
from trtforge.engines.aoti.split_graphs import shape_of_rank
from trtforge.engines.aoti.step_sizes import STEP_INTERFACE
from trtforge.engines.driver_main import DriverError

Graph = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Loaded:
    """What an engine consists of.

    Attributes:
        shape: Of what is here: one rank's part of the model.
        model: `pretrained_config`, the config.json of the checkpoint.
        build: `build_config`, what the build driver put into effect.
        graphs: Compiled graphs by name.
        head: Weights of the final norm and of the output.
        layers: Of each layer, its weights in the order of `LayerShape.layer_weights`.
        cos, sin: Tables (max_seq_len, D).
    """

    device: torch.device
    shape: LayerShape
    limits: Limits
    model: dict[str, Any]
    build: dict[str, Any]
    graphs: dict[str, Graph]
    embedding: Tensor
    head: list[Tensor]
    layers: list[list[Tensor]]
    cos: Tensor
    sin: Tensor

    def new_caches(self, sequences: int) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, keys and values (B, K, L, D) of no token yet."""
        size = (sequences, self.shape.kv_heads, self.limits.cache_len, self.shape.head_size)

        def zeros() -> Tensor:
            return torch.zeros(size, dtype=self.shape.torch_dtype, device=self.device)

        return [(zeros(), zeros()) for _ in self.layers]


def load(engine_dir: Path, rank: int = 0, ranks: int = 1) -> Loaded:
    """Load what the build driver made for one of so many ranks.

    Raises:
        DriverError: `toolchain-mismatch`, `world-size` or `gpu-memory`.
    """
    config = json.loads((engine_dir / "config.json").read_text())
    if config["version"] != torch.__version__:
        raise DriverError(
            "toolchain-mismatch",
            f"the engine was compiled by PyTorch {config['version']}, this is {torch.__version__}",
            "Run it with the version it was compiled with, or build it again",
        )
    model, build = config["pretrained_config"], config["build_config"]
    interface = build.get("step_interface", 1)
    if build.get("decode") == "kernels" and interface != STEP_INTERFACE:
        raise DriverError(
            "toolchain-mismatch",
            f"the engine's decode graphs have interface {interface}, this trtforge runs "
            f"{STEP_INTERFACE}",
            "Run it with the trtforge it was built by, or build it again",
        )
    if build.get("tp", 1) != ranks:
        raise DriverError(
            "world-size",
            f"the engine was built for {build.get('tp', 1)} ranks, and this is one of {ranks}",
            "Run it with the run driver, which starts a process for each",
        )
    device = _device(build["device"], rank, ranks)
    shape = shape_of_rank(LayerShape.from_checkpoint(model), ranks)
    limits = Limits(build["max_batch_size"], build["max_input_len"], build["max_seq_len"])
    weights_path = engine_dir / f"rank{rank}.safetensors"
    if device.type == "cuda":
        _check_memory(weights_path.stat().st_size, build, torch.cuda.mem_get_info(device)[0])
    index = -1 if device.index is None else device.index
    # Single-threaded: the engine is called by one thread, and CUDA graphs need it so.
    graphs: dict[str, Graph] = {
        name: torch._C._aoti.AOTIModelPackageLoader(
            str(engine_dir / f"rank{rank}.pt2"), name, True, 1, index
        ).run
        for name in build["graphs"]
    }
    weights = load_file(weights_path, device=str(device))
    cos, sin = rotary_table(model, shape, limits, device)
    return Loaded(
        device=device,
        shape=shape,
        limits=limits,
        model=model,
        build=build,
        graphs=graphs,
        embedding=weights["transformer.vocab_embedding.weight"],
        head=[weights["transformer.ln_f.weight"], weights["lm_head.weight"]],
        layers=[
            [weights[f"transformer.layers.{i}.{name}"] for name in shape.layer_weights()]
            for i in range(model["num_hidden_layers"])
        ],
        cos=cos,
        sin=sin,
    )


def _device(kind: str, rank: int, ranks: int) -> torch.device:
    """Each of several ranks has a GPU of its own; on a CPU they are all on the same."""
    return torch.device(kind, rank) if kind == "cuda" and ranks > 1 else torch.device(kind)


def _check_memory(weight_bytes: int, build: dict[str, Any], free_bytes: int) -> None:
    cache_bytes = build["max_batch_size"] * build["kv_cache_bytes_per_sequence"]
    needed = weight_bytes + cache_bytes + RESERVE_BYTES
    if needed > free_bytes:
        raise DriverError(
            "gpu-memory",
            f"the engine needs {needed / 1e9:.1f} GB of the GPU's memory ({weight_bytes / 1e9:.1f} "
            f"for weights, {cache_bytes / 1e9:.1f} for the caches of {build['max_batch_size']} "
            f"sequences) and {free_bytes / 1e9:.1f} GB are free",
            "End what else uses the GPU, or build with a smaller engine.max_batch_size or "
            "engine.max_seq_len",
        )
