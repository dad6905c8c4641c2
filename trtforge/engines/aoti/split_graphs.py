"""The graphs of one tensor-parallel rank: a layer is cut where ranks add what they computed.

A rank holds its own attention heads, its own neurons of the MLP and its own rows of the output
matrix, as the converter cut them. What comes out of the output projection, and of the MLP, is
then one part of a sum over ranks. So a layer is two graphs, and the sum is made between them:

    h, part = attention(h, delta, …)    delta: the sum of the last layer's parts of the MLP
    h, part = mlp(h, delta, …)          delta: the sum of attention's parts

Each adds `delta` to the hidden states h first, so that h is the same on every rank. Parts and
sums are fp32 (`split_decode` says why). The bias of the output projection, which every rank has
whole, is added once, to the sum.

Graphs, by name: `prefill_attention`, `decode_attention`; `mlp` of tokens in a row, of prompts or of
a step; and `head`, which is that of `trtforge.engines.aoti.graphs` on fewer rows. As there, `_one`
and `_few` are those that a CPU has for few sequences.
"""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trtforge.engines.aoti.graphs import (
    DecodeLayer,
    LayerShape,
    Limits,
    PrefillLayer,
    export_graph,
    graph_names,
    identity,
    rms_norm,
)

_DENSE, _DENSE_BIAS = "attention.dense.weight", "attention.dense.bias"


def shape_of_rank(shape: LayerShape, ranks: int) -> LayerShape:
    """The part of a model that each of `ranks` ranks holds; `vocab` are its rows, padding too."""
    return replace(
        shape,
        heads=shape.heads // ranks,
        # Fewer heads than ranks are held by several.
        kv_heads=max(shape.kv_heads // ranks, 1),
        intermediate=shape.intermediate // ranks,
        vocab=-(-shape.vocab // ranks),
    )


def attention_weights(shape: LayerShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `*_attention` takes of a layer's weights, in call order."""
    names = ("input_layernorm.weight", "attention.qkv.weight", "attention.qkv.bias", _DENSE)
    return {name: size for name, size in shape.layer_weights().items() if name in names}


def mlp_weights(shape: LayerShape) -> dict[str, tuple[int, ...]]:
    """What `mlp` takes: all the others."""
    taken = attention_weights(shape)
    return {name: size for name, size in shape.layer_weights().items() if name not in taken}


def split_names(limits: Limits, device: str) -> tuple[str, ...]:
    """The graphs a rank needs on `device` (`cpu` or `cuda`)."""
    names = ["prefill_attention", "mlp"]
    for name in graph_names(limits, device)[1:]:
        part, _, rows = name.partition("_")
        ending = f"_{rows}" if rows else ""
        names += [f"decode_attention{ending}", f"mlp{ending}"] if part == "decode" else [name]
    return tuple(dict.fromkeys(names))


def split_identity(name: str, shape: LayerShape, limits: Limits) -> dict[str, Any]:
    """What, of all parameters, decides the code of graph `name`: part of its cache key.

    `shape` is a rank's.
    """
    if name.startswith("head"):
        return identity(name, shape, limits)
    attention = "attention" in name
    described = asdict(shape)
    for field in ("vocab", "intermediate") if attention else ("vocab", "heads", "kv_heads"):
        del described[field]
    facts: dict[str, Any] = {"graph": name, "shape": described}
    if _rows(name, limits) is None:
        facts["max_batch_size"] = limits.max_batch_size
    if name.endswith("_few"):
        facts["few"] = limits.few
    if attention:
        facts["max_seq_len"] = limits.max_seq_len
    if name in ("prefill_attention", "mlp"):
        facts["max_input_len"] = limits.max_input_len
    return facts


def export_split(name: str, shape: LayerShape, limits: Limits, device: str) -> ExportedProgram:
    """Trace graph `name` of a rank's `shape`; dynamic are batch, prompt and context length."""
    if name.startswith("head"):
        return export_graph(name, shape, limits, device)
    rows = _rows(name, limits)
    fixed_batch = 1 if limits.max_batch_size == 1 else rows
    batch = None if fixed_batch else Dim("batch", min=1, max=limits.max_batch_size)
    # Sizes of 1 would be taken for constants.
    example_batch = fixed_batch or min(3, limits.max_batch_size)

    def make(size: tuple[int, ...], dtype: torch.dtype = shape.torch_dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    def states(*size: int) -> tuple[Tensor, Tensor]:
        return make((*size, shape.hidden)), make((*size, shape.hidden), torch.float32)

    per_row: dict[int, Any] = {0: batch} if batch else {}
    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic: tuple[Any, ...]
    if name.startswith("mlp"):
        weights = tuple(make(size) for size in mlp_weights(shape).values())
        most = limits.max_batch_size * limits.max_input_len
        per_token = {} if rows else {0: Dim("tokens", min=1, max=most)}
        module = Mlp(shape, rows)
        inputs = (*states(rows or min(7, most), 1), *weights)
        dynamic = (per_token, per_token, (None,) * len(weights))
    else:
        weights = tuple(make(size) for size in attention_weights(shape).values())
        cache = (example_batch, shape.kv_heads, limits.cache_len, shape.head_size)
        if name.startswith("prefill"):
            length = min(7, limits.max_input_len)
            tokens = Dim("tokens", min=1, max=limits.max_input_len)
            module = PrefillAttention(shape)
            masks: tuple[Tensor, ...] = ()
            per_token, per_rope = per_row | {1: tokens}, per_row | {2: tokens}
            per_input: tuple[Any, ...] = (per_token, per_rope, per_rope)
        else:
            length = 1
            context = Dim("context", min=1, max=limits.max_seq_len)
            module = DecodeAttention(shape, rows)
            masks = (make((example_batch, 1, 1, min(5, limits.max_seq_len)), torch.float32),)
            per_token = per_row
            per_input = (*(per_row,) * 3, per_row | {3: context})
        positions = torch.arange(length, device=device).expand(example_batch, length).contiguous()
        rope = (example_batch, 1, length, shape.head_size)
        inputs = (*states(example_batch, length), positions, make(rope), make(rope), *masks)
        inputs += (make(cache), make(cache), *weights)
        per_input = (*per_input, per_row, per_row, *(None,) * len(weights))
        dynamic = (per_token, per_token, per_input)
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)


def _rows(name: str, limits: Limits) -> int | None:
    return {"one": 1, "few": limits.few}.get(name.rpartition("_")[2])


def added(h: Tensor, delta: Tensor) -> Tensor:
    """Hidden states in the model's type and a sum over ranks in fp32 → hidden states."""
    return (h.float() + delta).to(h.dtype)


class PrefillAttention(nn.Module):
    """B prompts of S tokens each, right-padded."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.layer = _PrefillHeads(shape)

    def forward(self, h: Tensor, delta: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """As `PrefillLayer`, with `delta` (B, S, H) fp32 after h: h and this rank's part."""
        h = added(h, delta)
        return h, self.layer(h, *inputs)


class DecodeAttention(nn.Module):
    """One token for each of B sequences, against this rank's heads of the cache."""

    def __init__(self, shape: LayerShape, rows: int | None = None) -> None:
        super().__init__()
        self.layer = _DecodeHeads(shape, rows)

    def forward(self, h: Tensor, delta: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """As `DecodeLayer`, with `delta` (B, 1, H) fp32 after h: h and this rank's part."""
        h = added(h, delta)
        return h, self.layer(h, *inputs)


class Mlp(nn.Module):
    def __init__(self, shape: LayerShape, rows: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.linear = DecodeLayer(shape, rows).linear

    def forward(self, h: Tensor, delta: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """h (tokens, 1, H), delta fp32 the same → h and this rank's part of the MLP."""
        w = dict(zip(mlp_weights(self.shape), weights, strict=True))
        if _DENSE_BIAS in w:
            delta = delta + w[_DENSE_BIAS].float()
        h = added(h, delta)
        x = rms_norm(h, w["post_layernorm.weight"], self.shape.norm_epsilon)
        gated = torch.nn.functional.silu(self.linear(x, w["mlp.fc.weight"]))
        gated = gated * self.linear(x, w["mlp.gate.weight"])
        return h, self.linear(gated, w["mlp.proj.weight"]).float()


class _PrefillHeads(PrefillLayer):
    """A rank's heads and its columns of the output projection, without what follows them."""

    def finish(self, h: Tensor, attended: Tensor, w: dict[str, Tensor]) -> Tensor:
        del h
        return self.linear(attended.transpose(1, 2).flatten(2), w[_DENSE]).float()

    def named(self, weights: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(attention_weights(self.shape), weights, strict=True))


class _DecodeHeads(DecodeLayer):
    """See `_PrefillHeads`."""

    def finish(self, h: Tensor, attended: Tensor, w: dict[str, Tensor]) -> Tensor:
        del h
        return self.linear(attended.transpose(1, 2).flatten(2), w[_DENSE]).float()

    def named(self, weights: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(attention_weights(self.shape), weights, strict=True))
