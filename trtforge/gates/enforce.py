"""Gates decide: an engine that fails one is not published, and its aliases stay where they are."""

from typing import Any

from trtforge.errors import GateError
from trtforge.gates.correctness import Verdict


class CorrectnessGateError(GateError):
    """The engine does not compute what the model computes."""


def enforce(verdicts: list[Verdict]) -> dict[str, Any]:
    """Pass the correctness gate, or raise; returns what the manifest says about it.

    Raises:
        CorrectnessGateError: naming the first prompt that failed and how.
    """
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        first = failed[0]
        raise CorrectnessGateError(
            f"{len(failed)} of {len(verdicts)} answers are wrong; the first: {first.reason}",
            field="gates.prompts",
            value=first.prompt,
            remedy="The engine was not published; the evidence is in the benchmark stage's "
            "report.json in the store",
        )
    return {"correctness": {"passed": True, "answers": len(verdicts)}}
