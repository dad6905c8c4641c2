"""The 16-bit model's distance from fp32, which is the yardstick for everybody else's."""

from dataclasses import dataclass

import numpy as np

from trtforge.gates.divergence import Logits

# Below this the 16-bit model itself is as good as exact (a toy model, or an fp32 one), and a ratio
# of two such numbers says nothing. In units of the fp32 logits' standard deviation.
_NOISE_FLOOR = 1e-3
# For logits that do not vary at all.
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Rounding:
    """An engine's errors beside those that rounding explains; all logits (steps, vocabulary).

    Attributes:
        ratio: RMS error of the engine over RMS error of the 16-bit model, both against fp32.
        of_steps: The same step by step. Where the 16-bit model came closer to fp32 than it does
            on average, by luck, its average counts.
        floor: The smallest error that counts as one.
    """

    ratio: float
    of_steps: tuple[float, ...]
    floor: float
    _exact: Logits
    _noise: Logits

    @classmethod
    def of(cls, mine: Logits, theirs: Logits, exact: Logits) -> "Rounding":
        """Compare the engine's logits, the 16-bit model's, and fp32's."""
        errors, noise = mine - exact, theirs - exact
        floor = max(_NOISE_FLOOR * float(exact.std()), _TINY)
        usual = max(_rms(noise), floor)
        of_steps = (_rms(e) / max(_rms(n), usual) for e, n in zip(errors, noise, strict=True))
        return cls(_rms(errors) / usual, tuple(of_steps), floor, exact, noise)

    @property
    def worst(self) -> float:
        """The worst single step's ratio."""
        return max(self.of_steps)

    def beyond(self, factor: float, step_factor: float | None = None) -> str:
        """What is too far away; empty when nothing is.

        Args:
            step_factor: For any single step; None: the same as over all of them.
        """
        at_one = factor if step_factor is None else step_factor
        if self.ratio <= factor and self.worst <= at_one:
            return ""
        allowed = f"{factor:g} are allowed" + (f", {at_one:g} at one" if at_one != factor else "")
        return (
            f"the engine's logits are {self.ratio:.1f} times as far from fp32 as the original "
            f"16-bit model's, and {self.worst:.1f} times at token "
            f"{self.of_steps.index(self.worst)}; {allowed}"
        )

    def gap(self, step: int, wanted: int, given: int) -> float:
        """By how much fp32 prefers one token to another."""
        return float(self._exact[step, wanted] - self._exact[step, given])

    def explained_gap(self, step: int, factor: float) -> float:
        """The largest gap that errors within `factor` may close: both tokens may move by one."""
        return 2 * factor * max(float(np.abs(self._noise[step]).max()), self.floor)


def incomparable(mine: Logits, theirs: Logits, exact: Logits) -> str:
    """Why logits cannot be compared; empty when they can."""
    if not len(mine):
        return "the engine gave no token"
    if mine.shape != exact.shape:
        return f"the engine's logits are of {mine.shape[1]} tokens instead of {exact.shape[1]}"
    if not np.isfinite(mine).all():
        return "the engine's logits are not finite"
    if not (np.isfinite(theirs).all() and np.isfinite(exact).all()):
        return "the original model's own logits are not finite: there is nothing to compare with"
    return ""


def _rms(values: Logits) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
