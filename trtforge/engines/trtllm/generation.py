"""What both runtimes give for a job, in the shape of `trtforge.engines.jobs`."""

from dataclasses import dataclass, field
from typing import Any

from trtforge.engines.driver_main import DriverError

NO_TOKEN = -1
"""As `end_id`: no token ends a sequence, every one asked for is generated."""


@dataclass
class Generation:
    """One batch's answer.

    Attributes:
        tokens: New token ids of each prompt; a stop id ends a sequence and is kept.
        step_s: Seconds from the start until every sequence had its nth token.
        request_s: Seconds from the start to each token, of each prompt. Where the runtime gives
            several tokens at once, as it does with logits, they have the same time.
        logits: fp32 (batch, vocabulary) of each step, on the CPU, when they were asked for.
    """

    tokens: "list[list[int]]"
    step_s: "list[float]"
    request_s: "list[list[float]]"
    logits: "list[Any]" = field(default_factory=list)


def assemble(
    tokens: "list[list[int]]",
    request_s: "list[list[float]]",
    logits: "list[Any] | None",
    vocab_size: int,
) -> Generation:
    """Put the answers of a batch's requests together.

    Args:
        logits: Of each request, a tensor (tokens, padded vocabulary); None when not asked for.
    """
    steps = max(len(times) for times in request_s)
    step_s = [max(times[step] for times in request_s if step < len(times)) for step in range(steps)]
    # A short sequence's last token may have come after a long one's next: times never go back.
    for step in range(1, steps):
        step_s[step] = max(step_s[step], step_s[step - 1])
    rows = _steps_of(logits, steps, vocab_size) if logits is not None else []
    return Generation(tokens, step_s, request_s, rows)


def sampling_of(job: "dict[str, Any]") -> "dict[str, Any]":
    """The sampling of a job as both runtimes take it: `top_k=1` where it is greedy.

    Raises:
        DriverError: `bad-sampling`.
    """
    asked = job.get("sampling") or {}
    temperature = asked.get("temperature", 0.0)
    top_k, top_p = asked.get("top_k", 0), asked.get("top_p", 1.0)
    if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1):
        raise DriverError(
            "bad-sampling",
            f"temperature {temperature:g}, top_k {top_k}, top_p {top_p:g} is no way to choose a "
            "token",
            "Use a temperature and top_k of 0 or more, and a top_p above 0 and up to 1",
        )
    if temperature == 0:
        return {"top_k": 1}
    # With neither of the two the runtime is greedy (SamplingParams._greedy_decoding): top_p 1 is
    # what asks for all tokens.
    chosen = {"temperature": temperature, "top_p": top_p, "seed": asked.get("seed", 0)}
    return {**chosen, "top_k": top_k} if top_k else chosen


def _steps_of(logits: "list[Any]", steps: int, vocab_size: int) -> "list[Any]":
    import torch

    batch = torch.zeros(len(logits), steps, vocab_size)
    for row, given in enumerate(logits):
        # Tensor parallelism pads the vocabulary.
        batch[row, : len(given)] = given[:, :vocab_size].float().cpu()
    return list(batch.transpose(0, 1))
