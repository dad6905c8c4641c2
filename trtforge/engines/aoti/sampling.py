"""How the next token is chosen from logits; on a GPU, without waiting for it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trtforge.engines.driver_main import DriverError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; top_k 0 and top_p 1 cut nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise DriverError(
                "bad-sampling",
                f"temperature {self.temperature:g}, top_k {self.top_k}, top_p {self.top_p:g} "
                "is no way to choose a token",
                "Use a temperature and top_k of 0 or more, and a top_p above 0 and up to 1",
            )


class Chooser:
    """Chooses tokens (B,) from logits (B, V); the same seed chooses the same again."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._random = torch.Generator(device).manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        s = self._sampling
        if s.temperature == 0:
            return logits.argmax(-1)
        scores = logits / s.temperature
        if s.top_k:
            floor = scores.topk(min(s.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < floor, -math.inf)
        if s.top_p < 1:
            ordered, order = scores.softmax(-1).sort(descending=True)
            outside = ordered.cumsum(-1) - ordered >= s.top_p
            scores = scores.masked_fill(outside.scatter(-1, order, outside), -math.inf)
        return torch.multinomial(scores.softmax(-1), 1, generator=self._random)[:, 0]
