"""Run an aoti engine: token ids in, token ids, logits and times out."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trtforge.engines.aoti.graphs import LayerShape, Limits, variant
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
    """

    def __init__(self, engine_dir: Path, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        config = json.loads((engine_dir / "config.json").read_text())
        self._model = config["pretrained_config"]
        self._build = config["build_config"]
        if config["version"] != torch.__version__:
            raise DriverError(
                "toolchain-mismatch",
                f"the engine was compiled by PyTorch {config['version']}, "
                f"this is {torch.__version__}",
                "Run it with the version it was compiled with, or build it again",
            )
        self.device = torch.device(self._build["device"])
        self.shape = LayerShape.from_checkpoint(self._model)
        self.limits = Limits(
            self._build["max_batch_size"], self._build["max_input_len"], self._build["max_seq_len"]
        )
        # Single-threaded: the engine is called by one thread, and CUDA graphs need it so.
        self._graphs = {
            name: torch._C._aoti.AOTIModelPackageLoader(
                str(engine_dir / "rank0.pt2"), name, True, 1, -1
            )
            for name in self._build["graphs"]
        }
        weights = load_file(engine_dir / "rank0.safetensors", device=str(self.device))
        self._embedding = weights["transformer.vocab_embedding.weight"]
        self._head = [weights["transformer.ln_f.weight"], weights["lm_head.weight"]]
        self._layers = [
            [weights[f"transformer.layers.{i}.{name}"] for name in self.shape.layer_weights()]
            for i in range(self._model["num_hidden_layers"])
        ]
        self._cos, self._sin = _rotary_table(self._model, self.shape, self.limits, self.device)

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Refuse what the engine was not built for, naming the limit."""
        longest = max((len(p) for p in prompts), default=0)
        for name, value, limit, what in (
            ("max_batch_size", len(prompts), self.limits.max_batch_size, "prompts in one batch"),
            ("max_input_len", longest, self.limits.max_input_len, "tokens in a prompt"),
            ("max_num_tokens", longest, self._build["max_num_tokens"], "tokens in a prompt"),
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
        vocab = self._model["vocab_size"]
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
        sampling: Sampling = Sampling(),
        stop_ids: Sequence[int] = (),
        keep_logits: bool = False,
    ) -> Generation:
        """Generate for one batch of prompts, all at once; sequences end at a stop id.

        Raises:
            DriverError: `limit-exceeded`, `empty-request` or `token-out-of-range`.
        """
        self.check(prompts, max_new_tokens)
        choose = _Chooser(sampling, self.device)
        started = time.perf_counter()
        _, rows = variant("decode", len(prompts), self._graphs, self.limits)
        caches = self._new_caches(rows)
        logits = self._prefill(prompts, caches)
        out = Generation([[] for _ in prompts], [])
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        longest = max(len(p) for p in prompts)
        finished = [False] * len(prompts)
        for step in range(max_new_tokens):
            if keep_logits:
                out.logits.append(logits.cpu())
            tokens = choose(logits)
            ids = tokens.tolist()
            out.step_s.append(time.perf_counter() - started)
            for row, token in enumerate(ids):
                if not finished[row]:
                    out.tokens[row].append(token)
                    finished[row] = token in stop_ids
            if all(finished) or step == max_new_tokens - 1:
                break
            logits = self._decode(tokens, lengths + step, longest + step + 1, caches)
        return out

    def _new_caches(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        size = (batch, self.shape.kv_heads, self.limits.cache_len, self.shape.head_size)
        dtype = self.shape.torch_dtype
        return [
            (
                torch.zeros(size, dtype=dtype, device=self.device),
                torch.zeros(size, dtype=dtype, device=self.device),
            )
            for _ in self._layers
        ]

    def _prefill(
        self, prompts: Sequence[Sequence[int]], caches: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Fill the cache, as many prompts at once as `max_num_tokens` allows; logits (B, V)."""
        batched = self.limits.max_batch_size > 1
        per_pass = self._build["max_num_tokens"] // max(len(p) for p in prompts) if batched else 1
        parts = []
        for first in range(0, len(prompts), per_pass):
            group = prompts[first : first + per_pass]
            rows = slice(first, first + len(group))
            length = max(len(p) for p in group)
            # Padding goes to the right: what it writes to the cache is overwritten before any
            # later position can see it.
            padded = [list(p) + [0] * (length - len(p)) for p in group]
            ids = torch.tensor(padded, device=self.device)
            positions = torch.arange(length, device=self.device).expand(len(group), length)
            h = torch.nn.functional.embedding(ids, self._embedding)
            fixed = [positions.contiguous(), *self._rope(positions)]
            graph = self._graphs["prefill"]
            for (k, v), weights in zip(caches, self._layers, strict=True):
                (h,) = graph.run([h, *fixed, k[rows], v[rows], *weights])
            last = torch.tensor([len(p) - 1 for p in group], device=self.device)
            parts.append(h[torch.arange(len(group), device=self.device), last])
        return self._logits(torch.cat(parts))

    def _decode(
        self,
        tokens: Tensor,
        positions: Tensor,
        length: int,
        caches: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """One step: the token of each sequence goes to its `positions` (B,); logits (B, V).

        `length` is the largest position plus one: how much of the cache is read.
        """
        slots = torch.arange(length, device=self.device)
        mask = torch.where(slots[None] <= positions[:, None], 0.0, -math.inf)[:, None, None]
        name, rows = variant("decode", len(tokens), self._graphs, self.limits)
        column = _padded(positions, rows)[:, None]
        h = torch.nn.functional.embedding(_padded(tokens, rows)[:, None], self._embedding)
        fixed = [column, *self._rope(column), _padded(mask, rows)]
        graph = self._graphs[name]
        for (k, v), weights in zip(caches, self._layers, strict=True):
            (h,) = graph.run([h, *fixed, k, v, *weights])
        return self._logits(h[: len(tokens), 0])

    def _logits(self, h: Tensor) -> Tensor:
        name, rows = variant("head", len(h), self._graphs, self.limits)
        (logits,) = self._graphs[name].run([_padded(h, rows).contiguous(), *self._head])
        return logits[: len(h), : self._model["vocab_size"]]

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, S, D) at `positions` (B, S)."""
        return self._cos[positions][:, None], self._sin[positions][:, None]


def _padded(x: Tensor, rows: int) -> Tensor:
    """`x` with rows of zeros added up to `rows`: sequences that nobody reads."""
    if len(x) == rows:
        return x
    return torch.cat((x, x.new_zeros((rows - len(x), *x.shape[1:]))))


class _Chooser:
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


def _rotary_table(
    model: dict[str, Any], shape: LayerShape, limits: Limits, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin (max_seq_len, D) in the model's dtype, computed in fp32."""
    dim = model.get("rotary_embedding_dim") or shape.head_size
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    inverse = torch.reciprocal(torch.pow(torch.tensor(float(model["rotary_base"])), exponents))
    inverse = _scaled(inverse, model.get("rotary_scaling") or {})
    angles = torch.outer(torch.arange(limits.max_seq_len, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos(), angles.sin()
    return cos.to(device, shape.torch_dtype), sin.to(device, shape.torch_dtype)


def _scaled(inverse: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Rotary scaling as transformers computes it (modeling_rope_utils): linear and llama3."""
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
