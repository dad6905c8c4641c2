"""Gates decide over the aliases: what an engine that fails one is told, and the record of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.errors import GateError
from trtforge.gates.correctness import Verdict
from trtforge.gates.performance import PerformanceVerdict

CORRECTNESS = "correctness"
PERFORMANCE = "performance"
_SHOWN_DIGITS = 12


class CorrectnessGateError(GateError):
    """The engine does not compute what the model computes."""


class PerformanceGateError(GateError):
    """The engine is slower than the one in use, beyond doubt."""


@dataclass(frozen=True)
class Decision:
    """What all gates say of one engine."""

    correctness: tuple[Verdict, ...]
    performance: PerformanceVerdict

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.correctness) and self.performance.passed

    def to_json(self) -> dict[str, Any]:
        """For the record of the verdict: by the name of the gate, `passed` and what was found."""
        wrong = [verdict for verdict in self.correctness if not verdict.passed]
        told: dict[str, Any] = correctness_told(self.correctness)[CORRECTNESS]
        if wrong:
            told |= {"failed": len(wrong), "first": _place(wrong[0]), "reason": wrong[0].reason}
        return {CORRECTNESS: told, PERFORMANCE: self.performance.to_json()}

    def require(self, engine_id: str) -> None:
        """Pass, or raise; correctness first.

        Raises:
            CorrectnessGateError: Naming the first prompt that was answered wrongly, and how.
            PerformanceGateError: Naming the comparison that failed.
        """
        shown = engine_id[:_SHOWN_DIGITS]
        remedy = (
            f"No alias was moved; engine {shown} is published, marked as failed, with its report. "
            f'To take it all the same: `trtforge gate {shown} --override "reason"`'
        )
        wrong = [verdict for verdict in self.correctness if not verdict.passed]
        if wrong:
            raise CorrectnessGateError(
                f"{len(wrong)} of {len(self.correctness)} answers are wrong; the first: "
                f"{wrong[0].reason}",
                field="gates",
                value=_place(wrong[0]),
                remedy=remedy,
            )
        if not self.performance.passed:
            raise PerformanceGateError(
                self.performance.describe(),
                field="gates.performance.tolerance",
                value=self.performance.tolerance,
                remedy=remedy,
            )


def correctness_told(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What a manifest's core says: no numbers, which differ between two measurements."""
    passed = all(verdict.passed for verdict in verdicts)
    return {CORRECTNESS: {"passed": passed, "answers": len(verdicts)}}


def failed_verdicts(decision: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of what `Decision.to_json` gave, what failed, for an event."""
    return [
        {"gate": name, **told} for name, told in decision.items() if told.get("passed") is False
    ]


def _place(verdict: Verdict) -> str:
    """Which prompt; of verdicts that were kept before prompts had names, its row in the job."""
    return verdict.source or f"{verdict.job}, prompt {verdict.prompt}"
