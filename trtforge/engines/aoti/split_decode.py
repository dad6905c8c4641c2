"""Prompts and decode steps on one tensor-parallel rank, in step with the other ranks.

Why the sums between the graphs are fp32: the bf16 model's own distance from fp32 being 1, that of a
model split two or four ways is 0.97 to 1.00 with sums in fp32, and 1.02 to 1.07, growing with the
ranks, with sums in bf16 (random weights, 4 and 16 layers). The gate must be left for faults; and a
step's sums are a few kilobytes, whose time is not that of their bytes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trtforge.engines.aoti.decode import Caches, GraphDecoder
from trtforge.engines.aoti.loaded import Loaded
from trtforge.engines.aoti.rank_group import RankGroup
from trtforge.engines.aoti.split_graphs import added, attention_weights


class SplitDecoder(GraphDecoder):
    """See `trtforge.engines.aoti.decode.Decoder`; made of the graphs of
    `trtforge.engines.aoti.split_graphs`."""

    decode = "decode_attention"

    def __init__(self, loaded: Loaded, group: RankGroup) -> None:
        super().__init__(loaded)
        self._group = group
        mine = attention_weights(loaded.shape)
        named = [list(zip(loaded.shape.layer_weights(), w, strict=True)) for w in loaded.layers]
        self._layers = [
            ([w for name, w in layer if name in mine], [w for name, w in layer if name not in mine])
            for layer in named
        ]

    def prompts(self, h: Tensor, fixed: Sequence[Tensor], caches: Caches) -> Tensor:
        """h (B, S, H) of right-padded prompts → the same after the last layer; fills `caches`."""
        return self.run("prefill_attention", h, fixed, caches)

    def head(self, h: Tensor) -> Tensor:
        # Rows of zeros fill the last rank's part up: what they give is cut off.
        return self._group.joined(super().head(h))[:, : self._loaded.model["vocab_size"]]

    def run(self, name: str, h: Tensor, fixed: Sequence[Tensor], caches: Caches) -> Tensor:
        """h (B, S, H) through all layers; `name` is the graph of their attention."""
        graphs, size = self._loaded.graphs, h.shape
        attention, mlp = graphs[name], graphs["mlp" + name.partition("attention")[2]]
        delta = torch.zeros(size, dtype=torch.float32, device=h.device)
        tokens = (-1, 1, size[-1])
        for (k, v), (of_attention, of_mlp) in zip(caches, self._layers, strict=True):
            h, part = attention([h, delta, *fixed, k, v, *of_attention])
            delta = self._group.add(part)
            h, part = mlp([h.reshape(tokens), delta.reshape(tokens), *of_mlp])
            h, delta = h.reshape(size), self._group.add(part).reshape(size)
        return added(h, delta)
