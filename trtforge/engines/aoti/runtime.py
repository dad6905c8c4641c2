"""Run an aoti engine: token ids in, token ids, logits and times out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtforge.engines.aoti.decode import Caches, Decoder, GraphDecoder, run_layers
from trtforge.engines.aoti.loaded import Loaded, load
from trtforge.engines.aoti.rank_group import RankGroup
from trtforge.engines.aoti.sampling import Chooser, Sampling
from trtforge.engines.aoti.split_decode import SplitDecoder
from trtforge.engines.driver_main import DriverError

__all__ = ["Engine", "Generation", "Sampling"]

Layers = Callable[[Tensor, Sequence[Tensor], Caches], Tensor]

_GREEDY = Sampling()


@dataclass
class Generation:
    """What one batch gave.

    Attributes:
        tokens: New token ids of each prompt; a stop id ends a sequence and is kept.
        step_s: Seconds from the start of the call to each step's tokens; the first is the TTFT.
        logits: fp32 (steps, B, V) on the CPU when they were asked for, else empty.
    """

    tokens: list[list[int]]
    step_s: list[float]
    logits: list[Tensor] = field(default_factory=list)


class Engine:
    """One loaded engine directory.

    Args:
        engine_dir: What the build driver made.
        threads: CPU threads; 0 leaves PyTorch's default.
        group: The ranks that run it, of which this process is one; each must make the same calls.
            None: an engine that is not split.

    Raises:
        DriverError: `toolchain-mismatch`, `world-size` or `gpu-memory`.
    """

    def __init__(self, engine_dir: Path, threads: int = 0, group: RankGroup | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._group = group
        self._loaded = load(engine_dir, group.rank, group.ranks) if group else load(engine_dir)
        self.device = self._loaded.device
        self.limits = self._loaded.limits
        self._decoder, self._layers = _ways(self._loaded, group)
        self._delivery = _Delivery(self.device, self.limits.max_batch_size)

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Refuse what the engine was not built for, naming the limit."""
        longest = max((len(p) for p in prompts), default=0)
        for name, value, limit, what in (
            ("max_batch_size", len(prompts), self.limits.max_batch_size, "prompts in one batch"),
            ("max_input_len", longest, self.limits.max_input_len, "tokens in a prompt"),
            ("max_num_tokens", longest, self._loaded.build["max_num_tokens"], "tokens in a prompt"),
            (
                "max_seq_len",
                longest + max_new_tokens,
                self.limits.max_seq_len,
                f"tokens in a sequence ({longest} of prompt and {max_new_tokens} new)",
            ),
        ):
            if value > limit:
                raise DriverError(
                    "limit-exceeded",
                    f"{value} {what}, and the engine was built with {name} {limit}",
                    f"Ask for less, or build it again with a larger engine.{name}",
                )
        if not prompts or min(len(p) for p in prompts) == 0 or max_new_tokens < 1:
            raise DriverError(
                "empty-request",
                "an empty prompt or no token asked for",
                "Give at least one of each",
            )
        vocab = self._loaded.model["vocab_size"]
        worst = next((t for p in prompts for t in p if not 0 <= t < vocab), None)
        if worst is not None:
            raise DriverError(
                "token-out-of-range",
                f"token id {worst} is not one of the model's, 0 to {vocab - 1}",
                "The tokenizer does not belong to this model",
            )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling = _GREEDY,
        stop_ids: Sequence[int] = (),
        keep_logits: bool = False,
        forced: Sequence[Sequence[int]] | None = None,
    ) -> Generation:
        """Generate for one batch of prompts, all at once; sequences end at a stop id.

        Args:
            forced: The new tokens of each prompt, whatever the logits say.

        Raises:
            DriverError: `limit-exceeded`, `empty-request` or `token-out-of-range`.
        """
        self.check(prompts, max_new_tokens)
        decoder = self._decoder
        choose: Callable[[Tensor], Tensor] = Chooser(sampling, self.device)
        choose_next = choose if sampling.temperature else decoder.likeliest
        if self._group:
            choose, choose_next = self._group.agreed(choose), self._group.agreed(choose_next)
        if forced is not None:
            given = iter(torch.tensor(forced, device=self.device).T.contiguous())
            choose = choose_next = lambda _: next(given)
        started = time.perf_counter()
        logits = self._prefill(prompts, decoder.begin([len(p) for p in prompts]))
        tokens = choose(logits)
        out = Generation([[] for _ in prompts], [])
        finished = [False] * len(prompts)
        for step in range(max_new_tokens):
            last = step == max_new_tokens - 1
            if keep_logits:
                out.logits.append(logits.cpu())
            arrival = self._delivery.send(tokens)
            if decoder.steps_ahead and not last:
                logits = decoder.step(tokens)
                tokens = choose_next(logits)
            ids = arrival()
            out.step_s.append(time.perf_counter() - started)
            for row, token in enumerate(ids):
                if not finished[row]:
                    out.tokens[row].append(token)
                    finished[row] = token in stop_ids
            if last or all(finished):
                break
            if not decoder.steps_ahead:
                logits = decoder.step(tokens)
                tokens = choose_next(logits)
        return out

    def _prefill(
        self, prompts: Sequence[Sequence[int]], caches: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Fill the cache, as many prompts at once as `max_num_tokens` allows; logits (B, V)."""
        at = self._loaded
        batched = self.limits.max_batch_size > 1
        per_pass = at.build["max_num_tokens"] // max(len(p) for p in prompts) if batched else 1
        parts = []
        for first in range(0, len(prompts), per_pass):
            group = prompts[first : first + per_pass]
            rows = slice(first, first + len(group))
            length = max(len(p) for p in group)
            # Padding goes to the right: what it writes to the cache is overwritten before any
            # later position can see it.
            filled = [list(p) + [0] * (length - len(p)) for p in group]
            ids = torch.tensor(filled, device=self.device)
            positions = torch.arange(length, device=self.device).expand(len(group), length)
            h = torch.nn.functional.embedding(ids, at.embedding)
            rope = (at.cos[positions][:, None], at.sin[positions][:, None])
            fixed = [positions.contiguous(), *rope]
            h = self._layers(h, fixed, [(k[rows], v[rows]) for k, v in caches])
            last = torch.tensor([len(p) - 1 for p in group], device=self.device)
            parts.append(h[torch.arange(len(group), device=self.device), last])
        return self._decoder.head(torch.cat(parts))


class _Delivery:
    """Brings tokens to the host; from a GPU beside what it does next."""

    def __init__(self, device: torch.device, rows: int) -> None:
        # Two, since the next step's tokens are sent before this one's are looked at.
        self._slots: list[Tensor] = []
        if device.type == "cuda":
            self._slots = [torch.empty(rows, dtype=torch.int64, pin_memory=True) for _ in "ab"]
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tokens: Tensor) -> Callable[[], list[int]]:
        """Begin to bring tokens (B,); what is returned waits for them.

        Until then nothing may write to `tokens`.
        """
        if not self._slots:
            ids = [int(token) for token in tokens.tolist()]
            return lambda: ids
        self._slots.reverse()
        slot = self._slots[0][: len(tokens)]
        there: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(self._stream):
            slot.copy_(tokens, non_blocking=True)
            there.record()

        def wait(sent: Tensor = tokens) -> list[int]:
            del sent  # else its memory could be given away before it is read
            there.synchronize()
            return [int(token) for token in slot.tolist()]

        return wait


def _ways(loaded: Loaded, group: RankGroup | None) -> tuple[Decoder, Layers]:
    """How steps are made, and how prompts go through the layers."""
    if group:
        split = SplitDecoder(loaded, group)
        return split, split.prompts
    prompts = partial(run_layers, loaded, "prefill")
    if loaded.build.get("decode") == "kernels":
        from trtforge.engines.aoti.replay import ReplayDecoder

        return ReplayDecoder(loaded), prompts
    return GraphDecoder(loaded), prompts
