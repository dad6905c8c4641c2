"""What the hardware allows at most: every figure can be told as a fraction of it.

One decode step reads every weight once, whatever the number of requests, and each request's keys
and values; a prefill multiplies every weight with every token. A roof over both:

    decode step   max(bytes moved / copy bandwidth, FLOPs / matmul rate)
    prefill       max(FLOPs / matmul rate, bytes of the weights / copy bandwidth)

The two rates are measured on the device (`trtforge.engines.reference.limits_driver`). Only gated
MLPs (Llama, Mistral, Qwen) are counted; what a layer normalises, adds or copies is not.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtforge.engines.base import OnLog
from trtforge.engines.driver_process import RUN_ENVIRONMENT, run_driver
from trtforge.progress import OnProgress

_TIMEOUT_S = 300.0
_SECONDS = 0.5
_WEIGHT_BYTES = 2

FORMULAS = {
    "itl_s": "max((weights + keys and values read) bytes / copy bandwidth, FLOPs / matmul rate)",
    "ttft_s": "max(prefill FLOPs / matmul rate, weights bytes / copy bandwidth)",
    "output_tokens_per_s": "concurrency * output tokens / (TTFT + (output tokens - 1) * ITL), each "
    "at its limit",
}


@dataclass(frozen=True)
class DeviceRates:
    """What one device was measured to do; copied bytes count twice, as read and as written."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides how much is moved and multiplied."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape | None":
        """From a TensorRT-LLM checkpoint's config (`pretrained_config`); None where it lacks one
        of the numbers."""
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            return cls(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_size") or hidden // heads),
                intermediate=int(config["intermediate_size"]),
                vocab=int(config["vocab_size"]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocab

    @property
    def weight_bytes(self) -> int:
        """What each step reads: all but the input embedding, of which it reads single rows."""
        return _WEIGHT_BYTES * (self.layer_weights + self.head_weights)

    def cache_bytes(self, tokens: float) -> float:
        """Keys and values of so many tokens."""
        return tokens * 2 * self.layers * self.kv_heads * self.head_size * _WEIGHT_BYTES

    def decode_flops(self, context: float) -> float:
        """Of one token of one request."""
        attention = 4 * self.layers * self.heads * self.head_size * context
        return 2 * (self.layer_weights + self.head_weights) + attention

    def prefill_flops(self, tokens: float) -> float:
        """Of one prompt; a token attends to those before it, and only the last needs logits."""
        attention = 2 * self.layers * self.heads * self.head_size * tokens * tokens
        return 2 * self.layer_weights * tokens + 2 * self.head_weights + attention


@dataclass(frozen=True)
class Limit:
    """The best that could be measured at one concurrency."""

    concurrency: int
    ttft_s: float
    itl_s: float
    output_tokens_per_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def limit(
    shape: ModelShape,
    rates: DeviceRates,
    *,
    concurrency: int,
    input_tokens: float,
    output_tokens: int,
    ranks: int = 1,
) -> Limit:
    """The limit of requests of one shape, on so many devices of these rates."""
    bytes_per_s = ranks * rates.copy_bytes_per_s
    flops_per_s = ranks * rates.matmul_flops_per_s
    context = input_tokens + output_tokens / 2
    moved = shape.weight_bytes + concurrency * shape.cache_bytes(context)
    itl_s = max(moved / bytes_per_s, concurrency * shape.decode_flops(context) / flops_per_s)
    prefill = concurrency * shape.prefill_flops(input_tokens)
    ttft_s = max(prefill / flops_per_s, shape.weight_bytes / bytes_per_s)
    whole_s = ttft_s + (output_tokens - 1) * itl_s
    return Limit(concurrency, ttft_s, itl_s, concurrency * output_tokens / whole_s)


def measure_rates(
    python: Path = Path(sys.executable),
    *,
    device: str,
    threads: int,
    work_dir: Path,
    on_progress: OnProgress,
    on_log: OnLog,
) -> DeviceRates:
    """Measure this machine's device with the toolchain's interpreter; takes about two seconds.

    Raises:
        BuildError: one of the driver errors of `trtforge.engines.driver_process`.
    """
    result = run_driver(
        "trtforge.engines.reference.limits_driver",
        {"device": device, "threads": threads, "seconds": _SECONDS},
        work_dir=work_dir,
        timeout_s=_TIMEOUT_S,
        python=python,
        environment=RUN_ENVIRONMENT,
        on_progress=on_progress,
        on_log=on_log,
    )
    return DeviceRates(result["copy_bytes_per_s"], result["matmul_flops_per_s"])
