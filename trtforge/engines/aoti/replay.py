"""Decode steps that a GPU replays: a whole step, from tokens to tokens, recorded once for a size.

Everything a step reads and writes lies at fixed places: the tokens, their positions, the caches.
A recorded step takes the tokens that the one before it left there, so that the host has nothing to
say, and nothing to wait for, between two steps. What it chose it also leaves where the step after
it does not write, so that it can be brought to the host meanwhile.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trtforge.engines.aoti.decode import padded
from trtforge.engines.aoti.graph_edges import start_early
from trtforge.engines.aoti.loaded import Loaded
from trtforge.engines.aoti.step_sizes import TICKETS, TICKETS_PER_LAYER, step_sizes
from trtforge.engines.aoti.step_state import State, begun, new_keys

_WAITING = ("rows_times_weights", "attend_to_cache")
"""The kernels that wait for their input themselves."""


class ReplayDecoder:
    """See `trtforge.engines.aoti.decode.Decoder`; made of the graphs of
    `trtforge.engines.aoti.step_graphs`.

    Where there is no GPU to record on, steps are run instead.
    """

    steps_ahead = True

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        limits, device = loaded.limits, loaded.device
        self._sizes = step_sizes(limits.max_batch_size)
        self._caches = loaded.new_caches(limits.max_batch_size)
        self._tokens = torch.zeros(limits.max_batch_size, dtype=torch.int64, device=device)
        self._positions = torch.zeros_like(self._tokens)
        self._tickets = [
            torch.zeros(TICKETS, dtype=torch.int32, device=device) for _ in range(TICKETS_PER_LAYER)
        ]
        first = list(loaded.shape.layer_weights()).index("input_layernorm.weight")
        self._norms = [*(weights[first] for weights in loaded.layers), loaded.head[0]]
        self._keys = {size: new_keys(size, device) for size in self._sizes}
        self._sent = {size: self._tokens.new_zeros(2, size) for size in self._sizes}
        self._logits: dict[int, Tensor] = {}
        self._batch, self._size, self._steps = 0, 0, 0
        self._likeliest: Tensor | None = None
        # The largest first: the others find room in what it has taken.
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._replay = {size: self._recorded(size) for size in reversed(self._sizes)}

    def begin(self, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        self._batch = len(lengths)
        self._size, self._steps = self._size_for(self._batch), 0
        self._keys[self._size][-1] = 0
        # Rows that only fill up read, and overwrite, the first place of a cache nobody uses.
        self._positions.zero_()
        self._positions[: self._batch] = torch.tensor(lengths, device=self._loaded.device)
        return self._caches

    def head(self, h: Tensor) -> Tensor:
        size = self._size_for(len(h))
        state = begun(padded(h, size).contiguous(), self._norms[-1], self._loaded.shape)
        # What it chooses here is nobody's, and the positions stay those of the prompts.
        none = self._tokens.new_zeros
        choice = [new_keys(size, h.device), none(size), none(2, size), none(size)]
        return self._run_head(state, choice)[: len(h)]

    def step(self, tokens: Tensor) -> Tensor:
        if tokens is not self._likeliest:
            self._tokens[: self._batch].copy_(tokens)
        self._replay[self._size]()
        self._likeliest = self._sent[self._size][self._steps % 2, : self._batch]
        self._steps += 1
        return self._logits[self._size][: self._batch]

    def likeliest(self, logits: Tensor) -> Tensor:
        del logits  # the recorded step has looked at them
        assert self._likeliest is not None
        return self._likeliest

    def _size_for(self, batch: int) -> int:
        return next(size for size in self._sizes if size >= batch)

    def _recorded(self, size: int) -> Callable[[], None]:
        if self._pool is None:
            return lambda: self._run(size)
        # The first call loads the kernels, which cannot be recorded.
        self._run(size)
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(recorded, pool=self._pool):
            self._run(size)
        if torch.cuda.get_device_capability() >= (9, 0):
            start_early(recorded, _WAITING)
        recorded.instantiate()
        return recorded.replay

    def _run(self, size: int) -> None:
        at = self._loaded
        tokens, positions = self._tokens[:size], self._positions[:size]
        state = at.graphs[f"step_begin_{size}"]([tokens, at.embedding, self._norms[0]])
        layer = at.graphs[f"step_{size}"]
        for weights, (k, v), next_norm in zip(
            at.layers, self._caches, self._norms[1:], strict=True
        ):
            cache = (k[:size], v[:size])
            state = layer(
                [*state, positions, at.cos, at.sin, *cache, next_norm, *self._tickets, *weights]
            )
        choice = [self._keys[size], tokens, self._sent[size], positions]
        self._logits[size] = self._run_head(state, choice)

    def _run_head(self, state: State, choice: list[Tensor]) -> Tensor:
        at = self._loaded
        name = f"step_head_{len(choice[1])}"
        (logits,) = at.graphs[name]([*state, at.head[1], self._tickets[0], *choice])
        return logits[:, : at.model["vocab_size"]]
