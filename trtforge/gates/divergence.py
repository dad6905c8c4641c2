"""How far two models' expectations of the same next tokens are apart, token by token."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Divergence:
    """Over steps at which all have read the same tokens.

    Attributes:
        kl: Mean KL divergence of the engine from fp32, KL(fp32 || engine), in nats.
        reference_kl: The same of the original 16-bit model.
        top1_agreement: Share of steps at which engine and 16-bit model find one token likeliest.
    """

    kl: float
    reference_kl: float
    top1_agreement: float


def divergence(mine: Logits, theirs: Logits, exact: Logits) -> Divergence:
    """Of logits (steps, vocabulary): the engine's, the 16-bit model's, and fp32's."""
    # Step by step: of a large vocabulary all steps in float64 would be gigabytes.
    kl = [kl_divergence(x, m) for x, m in zip(exact, mine, strict=True)]
    reference_kl = [kl_divergence(x, t) for x, t in zip(exact, theirs, strict=True)]
    return Divergence(
        kl=float(np.mean(kl)),
        reference_kl=float(np.mean(reference_kl)),
        top1_agreement=float(np.mean(mine.argmax(-1) == theirs.argmax(-1))),
    )


def kl_divergence(exact: Logits, other: Logits) -> float:
    """KL(exact || other) of the distributions that two rows of logits stand for, in nats."""
    p, q = log_probabilities(exact), log_probabilities(other)
    # Never below 0 but for rounding.
    return max(0.0, float(np.sum(np.exp(p) * (p - q))))


def perplexity(logits: Logits, tokens: list[int]) -> float:
    """exp of the mean negative log probability of the tokens that came, one per step."""
    rows = zip(logits, tokens, strict=True)
    return float(np.exp(-np.mean([log_probabilities(row)[token] for row, token in rows])))


def log_probabilities(row: Logits) -> npt.NDArray[np.float64]:
    wide = row.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide
