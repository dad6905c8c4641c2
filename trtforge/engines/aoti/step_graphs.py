"""The graphs of a decode step on a GPU, made of the kernels in `kernels` and `attention_kernel`.

One layer, what begins and what ends a step, compiled for fixed numbers of sequences (`step_sizes`),
to which a batch is padded: an unused row costs next to nothing, since all rows share one pass over
the weights. Every size is fixed, so that a whole step can be recorded as a CUDA graph and replayed;
how much of the cache is read follows from `positions`, on the GPU.

Graphs, by name: `step_begin_<n>`, `step_<n>`, `step_head_<n>`. They take the place of `decode` and
`head`.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn
from torch.export import ExportedProgram

from trtforge.engines.aoti.graphs import LayerShape, Limits, rms_norm
from trtforge.engines.aoti.step_ops import (
    step_attention,
    step_begin,
    step_choice,
    step_linear,
    step_residual,
)
from trtforge.engines.aoti.step_sizes import TICKETS, TICKETS_PER_LAYER
from trtforge.engines.aoti.step_state import State, begin_tiles, begun, new_keys
from trtforge.engines.aoti.tiles import MATRIX_ROWS


def export_step(name: str, shape: LayerShape, limits: Limits, device: str) -> ExportedProgram:
    """Trace graph `name`."""
    sequences = int(name.rpartition("_")[2])

    def make(*size: int, dtype: torch.dtype = shape.torch_dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    tickets = [make(TICKETS, dtype=torch.int32) for _ in range(TICKETS_PER_LAYER)]
    norm, matrix = make(shape.hidden), make(shape.vocab, shape.hidden)
    positions = make(sequences, dtype=torch.int64)
    inputs: tuple[Tensor, ...]
    if name.startswith("step_begin"):
        module: nn.Module = StepBegin(shape)
        inputs = (positions, matrix, norm)
    else:
        state = begun(make(sequences, shape.hidden), norm, shape)
        if name.startswith("step_head"):
            module = StepHead(shape)
            tokens, sent = torch.zeros_like(positions), make(2, sequences, dtype=torch.int64)
            choice = (new_keys(sequences, device), tokens, sent, positions)
            inputs = (*state, matrix, tickets[0], *choice)
        else:
            weights = [make(*size) for size in shape.layer_weights().values()]
            table = (limits.max_seq_len, shape.head_size)
            cache = (sequences, shape.kv_heads, limits.cache_len, shape.head_size)
            module = StepLayer(shape)
            inputs = (*state, positions, make(*table), make(*table), make(*cache), make(*cache))
            inputs += (norm, *tickets, *weights)
    with torch.no_grad():
        return torch.export.export(module, inputs, strict=False)


class StepBegin(nn.Module):
    """Embeddings of one token of each of B sequences."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, tokens: Tensor, embedding: Tensor, norm: Tensor) -> State:
        """tokens (B,) → state; `norm` is the first layer's."""
        rows = tokens.shape[0]
        if rows > MATRIX_ROWS:
            h = F.embedding(tokens, embedding)
            return [h, rms_norm(h, norm, self.shape.norm_epsilon)]
        return list(step_begin(tokens, embedding, norm, begin_tiles(rows, self.shape)))


class StepLayer(nn.Module):
    """One layer, one new token for each of B sequences."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, *inputs: Tensor) -> State:
        """State, positions, rotary tables, caches, the next norm, tickets, weights → state."""
        if inputs[0].shape[0] > MATRIX_ROWS:
            return self._by_library(*inputs)
        h, x, squares, positions, cos, sin, k_cache, v_cache, next_norm, *rest = inputs
        t1, t2, t3, t4, t5 = rest[:TICKETS_PER_LAYER]
        w = self._named(rest[TICKETS_PER_LAYER:])
        epsilon = self.shape.norm_epsilon
        qkv = step_linear(
            *(x, w["attention.qkv.weight"], t1, epsilon),
            squares=squares,
            bias=w.get("attention.qkv.bias"),
        )
        a = step_attention(qkv, cos, sin, positions, k_cache, v_cache, t2)
        h, x, squares = step_residual(
            *(a, w["attention.dense.weight"], t3, h, w["post_layernorm.weight"]),
            bias=w.get("attention.dense.bias"),
        )
        x = step_linear(
            x, w["mlp.fc.weight"], t4, epsilon, up=w["mlp.gate.weight"], squares=squares
        )
        return list(step_residual(x, w["mlp.proj.weight"], t5, h, next_norm))

    def _by_library(self, *inputs: Tensor) -> State:
        h, x, positions, cos, sin, k_cache, v_cache, next_norm, *rest = inputs
        w = self._named(rest[TICKETS_PER_LAYER:])
        qkv = F.linear(x, w["attention.qkv.weight"], w.get("attention.qkv.bias"))
        a = step_attention(qkv, cos, sin, positions, k_cache, v_cache, rest[1])
        h = h + F.linear(a, w["attention.dense.weight"], w.get("attention.dense.bias"))
        x = rms_norm(h, w["post_layernorm.weight"], self.shape.norm_epsilon)
        gated = F.silu(F.linear(x, w["mlp.fc.weight"])) * F.linear(x, w["mlp.gate.weight"])
        h = h + F.linear(gated, w["mlp.proj.weight"])
        return [h, rms_norm(h, next_norm, self.shape.norm_epsilon)]

    def _named(self, weights: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.shape.layer_weights(), weights, strict=True))


class StepHead(nn.Module):
    """Vocabulary projection, and the choice of the likeliest token."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.epsilon = shape.norm_epsilon

    def forward(self, *inputs: Tensor) -> Tensor:
        """State (of which h is not read), output matrix, tickets, keys, tokens, sent, positions →
        fp32 logits (B, V); of what is left in the last four see `step_ops.step_choice`.
        """
        if inputs[0].shape[0] > MATRIX_ROWS:
            return self._by_library(*inputs)
        _, x, squares, lm_head, tickets, *choice = inputs
        logits: Tensor = step_choice(x, lm_head, tickets, self.epsilon, squares, *choice)
        return logits

    def _by_library(self, *inputs: Tensor) -> Tensor:
        _, x, lm_head, _, keys, tokens, sent, positions = inputs
        logits = F.linear(x, lm_head).float()
        likeliest = logits.argmax(-1)
        tokens.copy_(likeliest)
        steps = keys[-1:]
        sent.index_copy_(0, steps % 2, likeliest[None])
        steps.add_(1)
        positions.add_(1)
        return logits
