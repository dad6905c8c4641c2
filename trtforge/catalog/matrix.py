"""The matrix of a run as one table: what became of every cell."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trtforge.catalog.planning import CellPlan

_SHOWN_DIGITS = 12
_SHOWN_CHARACTERS = 400
_SHOWN_TROUBLES = 10
_ORDER = ("failed", "running", "queued", "built")
BAD = (
    "failed",
    "failing",
    "no worker",
    "gate failed",
    "gated",
    "vanished",
    "unreachable",
    "refused",
    "unknown toolchain",
)
"""States that somebody should look at."""


@dataclass(frozen=True)
class Line:
    """One cell.

    Attributes:
        state: The status of its plan, or what became of its build since: `queued`, `running`,
            `built`, `failed`, `cancelled`, `still running`, `over budget`, `outside the window`,
            `no worker`, `failing`.
        why: What changed, or what is wrong.
        run: Address of the build's page, where there is one.
    """

    cell: str
    state: str
    why: str
    engine: str = ""
    gpu_minutes: float | None = None
    run: str = ""

    @classmethod
    def of(cls, plan: CellPlan) -> "Line":
        engine = plan.engine.engine_id[:_SHOWN_DIGITS] if plan.engine else ""
        return cls(plan.cell.name, plan.status, "; ".join(plan.why), engine)


class Matrix:
    """All cells of a run, in the order of the catalogue."""

    def __init__(self, plans: Iterable[CellPlan]) -> None:
        self._lines = {plan.cell.name: Line.of(plan) for plan in plans}

    def __getitem__(self, cell: str) -> Line:
        return self._lines[cell]

    def set(
        self,
        cell: str,
        state: str,
        why: str = "",
        *,
        engine: str = "",
        gpu_minutes: float | None = None,
        run: str = "",
    ) -> None:
        """Give a cell another state; what is left out stays as it was."""
        line = self._lines[cell]
        self._lines[cell] = replace(
            line,
            state=state,
            why=why or line.why,
            engine=engine[:_SHOWN_DIGITS] or line.engine,
            gpu_minutes=line.gpu_minutes if gpu_minutes is None else gpu_minutes,
            run=run or line.run,
        )

    @property
    def lines(self) -> Sequence[Line]:
        return tuple(self._lines.values())

    def rows(self) -> list[dict[str, str]]:
        """For a table: trouble and work first, what nothing happened to last."""
        return [
            {
                "Model": line.cell.split("/")[0],
                "GPU": line.cell.split("/")[1],
                "Profile": line.cell.split("/")[2],
                "State": line.state,
                "Why": _cut(line.why),
                "Engine": line.engine,
                "GPU minutes": "" if line.gpu_minutes is None else f"{line.gpu_minutes:.0f}",
                "Run": line.run,
            }
            for line in sorted(self._lines.values(), key=_rank)
        ]

    def summary(self) -> str:
        """`2 built, 1 failed, 147 up to date`."""
        counts = Counter(line.state for line in sorted(self._lines.values(), key=_rank))
        return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no cells"

    def explain_unknown(self, plans: Iterable[CellPlan], troubles: Mapping[str, str]) -> None:
        """Say why nobody has looked at a pool, where that was found out."""
        for plan in plans:
            trouble = troubles.get(plan.cell.gpu.pool)
            if plan.status == "unknown toolchain" and trouble:
                self.set(plan.cell.name, plan.status, f"{'; '.join(plan.why)}: {trouble}")

    def told(self) -> str:
        """The summary, and the first few cells that somebody should look at."""
        troubles = self.troubles()
        more = len(troubles) - _SHOWN_TROUBLES
        lines = [self.summary(), *troubles[:_SHOWN_TROUBLES]]
        return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)

    def troubles(self) -> list[str]:
        """One line for each cell that somebody should look at."""
        return [f"{line.cell}: {line.state} ({line.why})" for line in self.lines if _is_bad(line)]


def _is_bad(line: Line) -> bool:
    return line.state in BAD


def _rank(line: Line) -> tuple[int, int]:
    if line.state == "up to date":
        return (2, 0)
    if line.state in _ORDER:
        return (0, _ORDER.index(line.state))
    return (0, len(_ORDER)) if _is_bad(line) else (1, 0)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
