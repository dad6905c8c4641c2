"""The graphs of a decode step on a GPU, made of the kernels in `kernels` and `attention_kernel`.

One layer and the head, compiled for fixed numbers of sequences (`step_sizes`), to which a batch is
padded: an unused row costs next to nothing, since all rows share one pass over the weights. Every
size is fixed, so that a whole step can be recorded as a CUDA graph and replayed; how much of the
cache is read follows from `positions`, on the GPU.

Graphs, by name: `step_<n>`, `step_head_<n>`. They take the place of `decode` and `head`.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn
from torch.export import ExportedProgram

from trtforge.engines.aoti.graphs import LayerShape, Limits, rms_norm
from trtforge.engines.aoti.step_ops import step_attention, step_linear
from trtforge.engines.aoti.step_sizes import TICKETS, TICKETS_PER_LAYER
from trtforge.engines.aoti.tiles import MATRIX_ROWS


def export_step(name: str, shape: LayerShape, limits: Limits, device: str) -> ExportedProgram:
    """Trace graph `name`."""
    sequences = int(name.rpartition("_")[2])

    def make(*size: int, dtype: torch.dtype = shape.torch_dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    h = make(sequences, shape.hidden)
    tickets = [make(TICKETS, dtype=torch.int32) for _ in range(TICKETS_PER_LAYER)]
    if name.startswith("step_head"):
        module: nn.Module = StepHead(shape)
        inputs: tuple[Tensor, ...] = (
            h,
            make(shape.hidden),
            make(shape.vocab, shape.hidden),
            tickets[0],
        )
    else:
        weights = [make(*size) for size in shape.layer_weights().values()]
        table = (limits.max_seq_len, shape.head_size)
        cache = (sequences, shape.kv_heads, limits.cache_len, shape.head_size)
        module = StepLayer(shape)
        positions = make(sequences, dtype=torch.int64)
        following = make(*shape.layer_weights()["attention.qkv.weight"])
        inputs = (h, positions, make(*table), make(*table), make(*cache), make(*cache))
        inputs += (following, *tickets, *weights)
    with torch.no_grad():
        return torch.export.export(module, inputs, strict=False)


class StepLayer(nn.Module):
    """One layer, one new token for each of B sequences."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(
        self,
        h: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        following: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        """h (B, H) → (B, H); `rest` is the tickets and the weights.

        `following` is what is read next: (Q+2K)·D rows of H numbers.
        """
        t1, t2, t3, t4, t5 = rest[:TICKETS_PER_LAYER]
        names = self.shape.layer_weights()
        w = dict(zip(names, rest[TICKETS_PER_LAYER:], strict=True))
        dense, gate, up = w["attention.dense.weight"], w["mlp.fc.weight"], w["mlp.gate.weight"]
        down = w["mlp.proj.weight"]
        before, after = w["input_layernorm.weight"], w["post_layernorm.weight"]
        qkv_bias, dense_bias = w.get("attention.qkv.bias"), w.get("attention.dense.bias")
        epsilon = self.shape.norm_epsilon
        if h.shape[0] > MATRIX_ROWS:
            qkv = F.linear(rms_norm(h, before, epsilon), w["attention.qkv.weight"], qkv_bias)
            a = step_attention(qkv, cos, sin, positions, k_cache, v_cache, t2)
            h = h + F.linear(a, dense, dense_bias)
            x = rms_norm(h, after, epsilon)
            return h + F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
        qkv = step_linear(h, w["attention.qkv.weight"], t1, epsilon, norm=before, bias=qkv_bias)
        a = step_attention(qkv, cos, sin, positions, k_cache, v_cache, t2, _ahead(dense))
        h = step_linear(a, dense, t3, epsilon, bias=dense_bias, residual=h, ahead=_ahead(gate))
        x = step_linear(h, gate, t4, epsilon, up=up, norm=after, ahead=_ahead(down))
        out: Tensor = step_linear(x, down, t5, epsilon, residual=h, ahead=_ahead(following))
        return out


class StepHead(nn.Module):
    """Final norm and vocabulary projection."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.epsilon = shape.norm_epsilon

    def forward(self, h: Tensor, norm: Tensor, lm_head: Tensor, tickets: Tensor) -> Tensor:
        """h (B, H) → fp32 logits (B, V)."""
        if h.shape[0] > MATRIX_ROWS:
            return F.linear(rms_norm(h, norm, self.epsilon), lm_head).float()
        logits: Tensor = step_linear(h, lm_head, tickets, self.epsilon, norm=norm, wide=True)
        return logits


def _ahead(weight: Tensor) -> Tensor | None:
    """Only GPUs from Hopper on can be asked for memory ahead of its use."""
    if not weight.is_cuda or torch.cuda.get_device_capability() < (9, 0):
        return None
    return weight
