"""An engine directory in memory: weights, compiled graphs and rotary tables, on one device."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trtforge.engines.aoti.graphs import LayerShape, Limits
from trtforge.engines.aoti.rotary import rotary_table
from trtforge.engines.driver_main import DriverError

Graph = Callable[[list[Tensor]], list[Tensor]]

_RESERVE_BYTES = 2 << 30
"""What a forward pass, CUDA and its libraries take of a GPU's memory besides."""


@dataclass(frozen=True)
class Loaded:
    """What an engine consists of.

    Attributes:
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


def load(engine_dir: Path) -> Loaded:
    """Load what the build driver made.

    Raises:
        DriverError: `toolchain-mismatch` or `gpu-memory`.
    """
    config = json.loads((engine_dir / "config.json").read_text())
    if config["version"] != torch.__version__:
        raise DriverError(
            "toolchain-mismatch",
            f"the engine was compiled by PyTorch {config['version']}, this is {torch.__version__}",
            "Run it with the version it was compiled with, or build it again",
        )
    model, build = config["pretrained_config"], config["build_config"]
    device = torch.device(build["device"])
    shape = LayerShape.from_checkpoint(model)
    limits = Limits(build["max_batch_size"], build["max_input_len"], build["max_seq_len"])
    weights_path = engine_dir / "rank0.safetensors"
    if device.type == "cuda":
        _check_memory(weights_path.stat().st_size, build, torch.cuda.mem_get_info(device)[0])
    # Single-threaded: the engine is called by one thread, and CUDA graphs need it so.
    graphs: dict[str, Graph] = {
        name: torch._C._aoti.AOTIModelPackageLoader(
            str(engine_dir / "rank0.pt2"), name, True, 1, -1
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


def _check_memory(weight_bytes: int, build: dict[str, Any], free_bytes: int) -> None:
    cache_bytes = build["max_batch_size"] * build["kv_cache_bytes_per_sequence"]
    needed = weight_bytes + cache_bytes + _RESERVE_BYTES
    if needed > free_bytes:
        raise DriverError(
            "gpu-memory",
            f"the engine needs {needed / 1e9:.1f} GB of the GPU's memory ({weight_bytes / 1e9:.1f} "
            f"for weights, {cache_bytes / 1e9:.1f} for the caches of {build['max_batch_size']} "
            f"sequences) and {free_bytes / 1e9:.1f} GB are free",
            "End what else uses the GPU, or build with a smaller engine.max_batch_size or "
            "engine.max_seq_len",
        )
