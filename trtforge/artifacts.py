"""What the artifacts of a run say, as plain rows and markdown; `tasks.reporting` shows them.

Artifacts are rows in Prefect's database, and nothing there limits their size: `capped` does.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from trtforge.engines.memory import MemoryPlan
from trtforge.stages.history import History
from trtforge.units import size

MOST_BYTES = 512 * 1024

_ROOM = 200
_WHERE = {"gpu": "GPU", "host": "memory", "disk": "disk"}
_FENCE = re.compile(r"^(`{3,})", re.MULTILINE)
_TELLING = re.compile(r"\b(error|warning|fatal|failed|exception)\b|\[[EWF]\]", re.IGNORECASE)
_TOLD, _TOLD_CHARACTERS = 20, 300


class Planned(Protocol):
    """One stage of a plan, as `trtforge.stages.plan.PlannedStage` is."""

    @property
    def stage(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def detail(self) -> str: ...


def artifact_key(text: str) -> str:
    """A key that Prefect takes: small letters, digits and `-`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "artifact"


def plan_rows(
    stages: Sequence[Planned],
    *,
    model_bytes: int,
    backend: str | None = None,
    gpu: str | None = None,
    history: History | None = None,
) -> tuple[list[dict[str, str]], str]:
    """The plan: whether the store has each stage, how many bytes it moves, about how long it takes.

    Args:
        model_bytes: Of the weights, as the source has them.
        backend, gpu: Of the toolchain; None where it is not known yet.
        history: For the minutes; without, none are told.

    Returns:
        One row per stage, and one line about all of them.
    """
    rows = []
    known_s: list[float] = []
    to_do = [planned for planned in stages if planned.status != "in store"]
    for planned in stages:
        hit = planned not in to_do
        seconds = (
            None
            if hit or history is None
            else history.seconds(planned.stage, model_bytes, backend=backend, gpu=gpu)
        )
        if seconds is not None:
            known_s.append(seconds)
        moved = model_bytes if not hit and planned.stage in {"pull", "convert", "compile"} else 0
        rows.append(
            {
                "Stage": planned.stage,
                "Status": planned.status,
                "Bytes": size(moved) if moved else "—",
                "Minutes (estimate)": "—" if hit else _minutes(seconds),
                "Detail": planned.detail,
            }
        )
    if not to_do:
        return rows, "nothing to do"
    told = f"{len(to_do)} of {len(rows)} stages to do"
    if not known_s:
        return rows, f"{told}; no earlier build says how long it takes"
    more = ", and what is not known" if len(known_s) < len(to_do) else ""
    about = _minutes(sum(known_s))
    return rows, f"{told}, {about} minutes by an estimate from earlier builds{more}"


def memory_rows(plan: MemoryPlan) -> list[dict[str, str]]:
    """The preflight: each part of what is needed, with its formula, and the sums."""
    rows = [
        {
            "Of": _WHERE[row.where],
            "What": row.name,
            "Size": size(row.size_bytes),
            "": "exact" if row.exact else "estimate",
            "Formula": row.formula,
        }
        for row in plan.rows
    ]
    for where in plan.counted:
        available, needed = plan.available_bytes(where), plan.needed_bytes(where)
        verdict = (
            "not known" if available is None else "fits" if needed <= available else "too much"
        )
        rows.append(
            {
                "Of": _WHERE[where],
                "What": "in all",
                "Size": size(needed),
                "": verdict,
                "Formula": f"{size(available)} there are" if available is not None else "",
            }
        )
    return rows


def log_summary(log: str, *, where: str = "", lines: int = 60) -> str:
    """Markdown on a toolchain's log: where all of it is, what it complains of, how it ends."""
    told = log.splitlines()
    telling = [line for line in told if _TELLING.search(line)]
    seen = list(dict.fromkeys(line.strip()[:_TOLD_CHARACTERS] for line in telling))
    parts = [f"{len(told)} lines" + (f"; all of them: `{where}`" if where else "")]
    if seen:
        some = f"the last {_TOLD} of {len(seen)}" if len(seen) > _TOLD else str(len(seen))
        parts += [f"### Warnings and errors ({some})", _block("\n".join(seen[-_TOLD:]))]
    end = told[-lines:]
    if end:
        parts += [f"### The last {len(end)} lines", _block("\n".join(end))]
    return "\n\n".join(parts) + "\n"


def capped(markdown: str, most_bytes: int = MOST_BYTES) -> str:
    """The markdown, or as many whole lines as fit, and a last line that says what is missing.

    Pictures are on one line each and are left out whole; an open code block is closed.
    """
    size_bytes = len(markdown.encode())
    if size_bytes <= most_bytes:
        return markdown
    kept: list[str] = []
    room = most_bytes - _ROOM
    for line in markdown.splitlines(keepends=True):
        room -= len(line.encode())
        if room < 0:
            break
        kept.append(line)
    text = "".join(kept)
    fences = _FENCE.findall(text)
    closing = f"\n{fences[-1]}" if len(fences) % 2 else ""
    shown = size(len(text.encode()))
    return f"{text}{closing}\n\n**Cut here: {shown} of {size(size_bytes)} are shown.**\n"


def capped_rows(
    rows: Sequence[Mapping[str, Any]], most_bytes: int = MOST_BYTES
) -> list[dict[str, Any]]:
    """The rows, or as many as fit, and a last one that says how many are missing."""
    kept: list[dict[str, Any]] = []
    room = most_bytes - _ROOM
    for row in rows:
        room -= len(json.dumps(row, default=str).encode()) + 2
        if room < 0:
            first = next(iter(row), "")
            blank = dict.fromkeys(row, "")
            return [*kept, {**blank, first: f"… and {len(rows) - len(kept)} more rows"}]
        kept.append(dict(row))
    return kept


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds / 60:.1f}" if seconds >= 6 else "< 0.1"


def _block(text: str) -> str:
    # Logs quote markdown, too.
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(4, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
