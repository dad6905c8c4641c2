"""Rotary embeddings as transformers computes them (modeling_rope_utils)."""

import math
from typing import Any

import torch
from torch import Tensor

from trtforge.engines.aoti.graphs import LayerShape, Limits


def rotary_table(
    model: dict[str, Any], shape: LayerShape, limits: Limits, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin (max_seq_len, D) in the model's dtype, computed in fp32.

    Args:
        model: `pretrained_config` of the engine: the config.json of the checkpoint.
    """
    dim = model.get("rotary_embedding_dim") or shape.head_size
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    inverse = torch.reciprocal(torch.pow(torch.tensor(float(model["rotary_base"])), exponents))
    inverse = _scaled(inverse, model.get("rotary_scaling") or {})
    angles = torch.outer(torch.arange(limits.max_seq_len, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos(), angles.sin()
    return cos.to(device, shape.torch_dtype), sin.to(device, shape.torch_dtype)


def _scaled(inverse: Tensor, scaling: dict[str, Any]) -> Tensor:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "linear":
        return torch.div(inverse, scaling["factor"])
    if kind != "llama3":
        return inverse
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    turns = inverse * (original / (2 * math.pi))
    smooth = torch.clamp((turns - low) / (high - low), 0, 1)
    return torch.lerp(inverse / scaling["factor"], inverse, smooth)
