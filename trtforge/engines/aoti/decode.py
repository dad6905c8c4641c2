"""Decode steps by calling the graphs `decode` and `head` one after the other."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trtforge.engines.aoti.graphs import variant
from trtforge.engines.aoti.loaded import Loaded


class Decoder(Protocol):
    """One way to make the next token's logits, for one batch at a time.

    Attributes:
        steps_ahead: Whether a step costs the host nothing, so that the next one can be begun before
            anybody has looked at this one's tokens.
    """

    steps_ahead: bool

    def begin(self, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Caches, of each layer keys and values (B, K, L, D), for prompts of these lengths."""
        ...

    def head(self, h: Tensor) -> Tensor:
        """Last hidden states (B, H) → fp32 logits (B, V)."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """The newest token of each sequence (B,) → fp32 logits (B, V), valid until the next."""
        ...

    def likeliest(self, logits: Tensor) -> Tensor:
        """Tokens (B,) with the highest of the `logits` that `step` has just given."""
        ...


Caches = Sequence[tuple[Tensor, Tensor]]


def run_layers(
    loaded: Loaded, name: str, h: Tensor, fixed: Sequence[Tensor], caches: Caches
) -> Tensor:
    """h (B, S, H) through graph `name` of each layer; `fixed` are the inputs all layers share."""
    for (k, v), weights in zip(caches, loaded.layers, strict=True):
        (h,) = loaded.graphs[name]([h, *fixed, k, v, *weights])
    return h


class GraphDecoder:
    """See `Decoder`. What a step has to do follows from the batch and its longest sequence."""

    steps_ahead = False
    decode = "decode"
    """Which graphs make a step of a layer."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._caches: list[tuple[Tensor, Tensor]] = []
        self._positions = torch.empty(0)
        self._longest = 0

    def begin(self, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        at = self._loaded
        _, rows = variant(self.decode, len(lengths), at.graphs, at.limits)
        # Those of the batch before go first: there may be no room for both.
        self._caches = []
        self._caches = at.new_caches(rows)
        self._positions = torch.tensor(lengths, device=at.device)
        self._longest = max(lengths)
        return self._caches

    def head(self, h: Tensor) -> Tensor:
        at = self._loaded
        name, rows = variant("head", len(h), at.graphs, at.limits)
        (logits,) = at.graphs[name]([padded(h, rows).contiguous(), *at.head])
        return logits[: len(h), : at.model["vocab_size"]]

    def step(self, tokens: Tensor) -> Tensor:
        at = self._loaded
        # How much of the cache is read: up to the largest position.
        slots = torch.arange(self._longest + 1, device=at.device)
        allowed = slots[None] <= self._positions[:, None]
        mask = torch.where(allowed, 0.0, -math.inf)[:, None, None]
        name, rows = variant(self.decode, len(tokens), at.graphs, at.limits)
        column = padded(self._positions, rows)[:, None]
        h = torch.nn.functional.embedding(padded(tokens, rows)[:, None], at.embedding)
        rope = (at.cos[column][:, None], at.sin[column][:, None])
        fixed = [column, *rope, padded(mask, rows)]
        h = self.run(name, h, fixed, self._caches)
        self._positions = self._positions + 1
        self._longest += 1
        return self.head(h[: len(tokens), 0])

    def likeliest(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def run(self, name: str, h: Tensor, fixed: Sequence[Tensor], caches: Caches) -> Tensor:
        """See `run_layers`."""
        return run_layers(self._loaded, name, h, fixed, caches)


def padded(x: Tensor, rows: int) -> Tensor:
    """`x` with rows of zeros added up to `rows`: sequences that nobody reads."""
    if len(x) == rows:
        return x
    return torch.cat((x, x.new_zeros((rows - len(x), *x.shape[1:]))))
