"""Which of the changed cells are built now: what their GPU time is estimated at, and what is left.

The estimate of a stage is what it took for the engine in use; for a cell that was never built, the
median of the cells on the same GPU type; else `budget.default_gpu_minutes` for the whole build.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from trtforge.catalog.model import Budget
from trtforge.catalog.planning import CellPlan

_GPU_STAGES = ("compile", "benchmark")
_MARGIN_MINUTES = 1.0  # of taking the GPU, trying the published copy, and giving it back


@dataclass(frozen=True)
class Allowance:
    """GPU minutes that may be taken now; None: as many as need be."""

    minutes: float | None

    @classmethod
    def of(cls, budget: Budget, spent_today_minutes: float) -> "Allowance":
        limits = []
        if budget.gpu_minutes_per_run is not None:
            limits.append(budget.gpu_minutes_per_run)
        if budget.gpu_minutes_per_day is not None:
            limits.append(max(budget.gpu_minutes_per_day - spent_today_minutes, 0.0))
        return cls(min(limits) if limits else None)


@dataclass(frozen=True)
class Budgeted:
    """A changed cell, the GPU minutes that its build is estimated at, and whether they are left."""

    plan: CellPlan
    minutes: float
    fits: bool


def choose(
    plans: Sequence[CellPlan], budget: Budget, allowance: Allowance, known: Sequence[CellPlan] = ()
) -> list[Budgeted]:
    """The changed cells among `plans`, by priority; of equal ones first those without an engine.

    A build that does not fit does not keep smaller ones after it from starting.

    Args:
        known: More plans to estimate by.
    """
    changed = [plan for plan in plans if plan.status == "changed"]
    ordered = sorted(changed, key=lambda p: (-p.cell.model.priority, p.engine is not None))
    left = allowance.minutes
    chosen = []
    for plan in ordered:
        minutes = estimated_minutes(plan, [*plans, *known], budget)
        fits = left is None or minutes <= left
        if left is not None and fits:
            left -= minutes
        chosen.append(Budgeted(plan, minutes, fits))
    return chosen


def estimated_minutes(plan: CellPlan, plans: Sequence[CellPlan], budget: Budget) -> float:
    """GPU minutes of one build."""
    done = {stage.stage for stage in plan.stages if stage.status == "in store"}
    to_do = [stage for stage in _GPU_STAGES if stage not in done]
    if not to_do:
        return _MARGIN_MINUTES
    own = _measured_minutes(plan, to_do)
    if own is not None:
        return own
    same_gpu = [other for other in plans if other.cell.gpu_type == plan.cell.gpu_type]
    measured = [minutes for p in same_gpu if (minutes := _measured_minutes(p, to_do)) is not None]
    return median(measured) if measured else budget.default_gpu_minutes


def _measured_minutes(plan: CellPlan, stages: Sequence[str]) -> float | None:
    timings = plan.engine.timings if plan.engine else {}
    if not all(stage in timings for stage in stages):
        return None
    return sum(timings[stage] for stage in stages) / 60 + _MARGIN_MINUTES
