"""TTFT, ITL and output tokens/s of one measurement; names and formulas follow aiperf.

Every request of a measurement starts at the same moment and runs in one batch (a closed loop at
the given concurrency, in process: no server, no network, tokenisation not included).

    TTFT              first token − request start
    ITL               (last token − first token) / (output tokens − 1), one value per request
    output tokens/s   concurrency × output tokens / (last token − request start)
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtforge.errors import BuildError

FORMULAS = {
    "ttft_s": "first token - request start",
    "itl_s": "(last token - first token) / (output tokens - 1)",
    "output_tokens_per_s": "concurrency * output tokens / (last token - request start)",
}


@dataclass(frozen=True)
class Measurement:
    """Medians over the repeats of one concurrency, and the lowest and highest throughput seen."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    repeats: int
    ttft_s: float
    itl_s: float
    output_tokens_per_s: float
    output_tokens_per_s_min: float
    output_tokens_per_s_max: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurement":
        return cls(**data)


class ShortOutputError(BuildError):
    """A request did not generate every token: its times would not be comparable."""


def measure(job: Mapping[str, Any], output: Mapping[str, Any]) -> Measurement:
    """Metrics of one job from the times of its tokens.

    Raises:
        ShortOutputError: a repeat gave fewer tokens than asked for.
    """
    concurrency, wanted = len(job["prompts"]), job["max_new_tokens"]
    times: Sequence[Sequence[float]] = output["step_s"]
    for repeat in times:
        if len(repeat) != wanted:
            raise ShortOutputError(
                f"{job['id']} gave {len(repeat)} tokens instead of {wanted}, its times say nothing",
                remedy="Build the engine again; it must not stop before it is told to",
            )
    throughputs = [concurrency * wanted / repeat[-1] for repeat in times]
    return Measurement(
        concurrency=concurrency,
        input_tokens=len(job["prompts"][0]),
        output_tokens=wanted,
        repeats=len(times),
        ttft_s=statistics.median(repeat[0] for repeat in times),
        itl_s=statistics.median((r[-1] - r[0]) / (wanted - 1) for r in times),
        output_tokens_per_s=statistics.median(throughputs),
        output_tokens_per_s_min=min(throughputs),
        output_tokens_per_s_max=max(throughputs),
    )
