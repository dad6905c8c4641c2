"""Small models, and ways in which a converter or a compiler gets a model wrong.

Each damage changes a Hugging Face model directory's tensors or its config. A gate that compares
with the undamaged model must see it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

FIXTURE = Path(__file__).parent / "fixtures" / "hf-models" / "qwen2_untied"
HEADS, KV_HEADS, HEAD = 4, 2, 16

Tensors = dict[str, npt.NDArray[Any]]
Config = dict[str, Any]
Damage = Callable[[Tensors, Config], None]

_LAYER = "model.layers.1"
# With the fixture's own weights, as small as training begins with, attention is all but uniform:
# even a wrong rotary embedding changes less than rounding does then.
_SHARPENED = 8.0


def write_model(directory: Path, seed: int = 0) -> Path:
    """A Qwen2 with biases, its rotary positions scaled, and random weights that matter."""
    shutil.copytree(FIXTURE, directory)
    source = np.random.default_rng(seed)
    tensors = load_file(directory / "model.safetensors")
    for name, given in tensors.items():
        wide = given.astype(np.float32)
        if wide.ndim > 1:
            spread = float(wide.std()) * (_SHARPENED if "_proj" in name else 1.0)
            wide = source.normal(0.0, spread, wide.shape)
        elif name.endswith(".bias"):
            wide = source.normal(0.0, 0.3, wide.shape)
        tensors[name] = wide.astype(ml_dtypes.bfloat16)
    config = json.loads((directory / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    _write(directory, tensors, config)
    return directory


def damaged(model: Path, directory: Path, damage: Damage) -> Path:
    """A damaged copy of a model."""
    shutil.copytree(model, directory)
    tensors = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    damage(tensors, config)
    _write(directory, tensors, config)
    changed = any(
        (directory / name).read_bytes() != (model / name).read_bytes()
        for name in ("model.safetensors", "config.json")
    )
    assert changed, "nothing was damaged"
    return directory


def gate_and_up_swapped(tensors: Tensors, _: Config) -> None:
    gate, up = f"{_LAYER}.mlp.gate_proj.weight", f"{_LAYER}.mlp.up_proj.weight"
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def bias_dropped(tensors: Tensors, _: Config) -> None:
    name = f"{_LAYER}.self_attn.v_proj.bias"
    tensors[name] = np.zeros_like(tensors[name])


def rope_theta_wrong(_: Tensors, config: Config) -> None:
    config["rope_theta"] *= 10


def rope_scaling_dropped(_: Tensors, config: Config) -> None:
    config["rope_scaling"] = None


def one_matrix_negated(tensors: Tensors, _: Config) -> None:
    name = f"{_LAYER}.mlp.down_proj.weight"
    tensors[name] = (-tensors[name].astype(np.float32)).astype(ml_dtypes.bfloat16)


def one_layer_permuted(tensors: Tensors, _: Config) -> None:
    name = f"{_LAYER}.self_attn.o_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:, ::-1])


def two_layers_swapped(tensors: Tensors, _: Config) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.0.")]:
        other = name.replace(".0.", ".1.", 1)
        tensors[name], tensors[other] = tensors[other], tensors[name]


def head_off_by_a_row(tensors: Tensors, _: Config) -> None:
    tensors["lm_head.weight"] = np.roll(tensors["lm_head.weight"], 1, axis=0)


def query_heads_swapped(tensors: Tensors, _: Config) -> None:
    _swap_heads(tensors, "q_proj", 0, HEADS - 1)


def key_heads_swapped(tensors: Tensors, _: Config) -> None:
    _swap_heads(tensors, "k_proj", 0, KV_HEADS - 1)


GROSS: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (
        gate_and_up_swapped,
        bias_dropped,
        rope_theta_wrong,
        rope_scaling_dropped,
        one_matrix_negated,
        one_layer_permuted,
        two_layers_swapped,
        head_off_by_a_row,
        query_heads_swapped,
        key_heads_swapped,
    )
}


def one_matrix_in_8_bits(tensors: Tensors, _: Config) -> None:
    """As a quantised weight would be: 255 steps per row."""
    _round(tensors, f"{_LAYER}.mlp.down_proj.weight", 127)


def all_matrices_in_8_bits(tensors: Tensors, _: Config) -> None:
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        _round(tensors, name, 127)


def one_matrix_in_4_bits(tensors: Tensors, _: Config) -> None:
    _round(tensors, f"{_LAYER}.mlp.down_proj.weight", 7)


SUBTLE: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (one_matrix_in_8_bits, all_matrices_in_8_bits, one_matrix_in_4_bits)
}


def _round(tensors: Tensors, name: str, steps: int) -> None:
    wide = tensors[name].astype(np.float32)
    step = np.abs(wide).max(axis=1, keepdims=True) / steps
    tensors[name] = (np.round(wide / step) * step).astype(ml_dtypes.bfloat16)


def _swap_heads(tensors: Tensors, projection: str, first: int, second: int) -> None:
    one, other = (
        slice(first * HEAD, first * HEAD + HEAD),
        slice(second * HEAD, second * HEAD + HEAD),
    )
    for part in ("weight", "bias"):
        name = f"{_LAYER}.self_attn.{projection}.{part}"
        swapped = tensors[name].copy()
        swapped[one], swapped[other] = tensors[name][other], tensors[name][one]
        tensors[name] = swapped


def _write(directory: Path, tensors: Tensors, config: Config) -> None:
    # Not in place: what was read may share its bytes with the file.
    save_file(tensors, directory / "new.safetensors", metadata={"format": "pt"})
    (directory / "new.safetensors").replace(directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
