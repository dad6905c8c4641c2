"""What the checks found: data, and the text to paste into an issue."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["PASS", "FAIL", "NOT RUN"]
_STANDIN_BANNER = (
    "**STAND-IN. STAND-IN. STAND-IN.** This ran against the tests' stand-in toolchain: no "
    "TensorRT, no GPU. It says nothing about TensorRT-LLM."
)


@dataclass(frozen=True)
class Check:
    """One belief held against reality.

    Attributes:
        detail: One line: what was found; why it failed or did not run.
        evidence: What somebody who wants to mend it needs to see.
    """

    name: str
    status: Status
    detail: str = ""
    seconds: float = 0.0
    evidence: tuple[str, ...] = ()


@dataclass
class Report:
    """All checks of one run, in order.

    Attributes:
        release: Of TensorRT-LLM, that was checked against.
        standin: It ran against the stand-in: whatever passed proves nothing.
        versions: What measured: name → version.
        numbers: Times and sizes: name → value with its unit.
    """

    release: str
    standin: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def count(self, status: Status) -> int:
        return sum(check.status == status for check in self.checks)

    @property
    def passed(self) -> bool:
        """Nothing failed, and something was checked."""
        return self.count("FAIL") == 0 and self.count("PASS") > 0

    def to_json(self) -> dict[str, Any]:
        return {"format": 1, "passed": self.passed, **asdict(self)}


def render(report: Report, hidden: dict[str, str] | None = None) -> str:
    """The report as markdown.

    Args:
        hidden: Paths of this machine → what is written for them.
    """
    lines = [f"# trtforge gpu-check, TensorRT-LLM {report.release}", ""]
    if report.standin:
        lines += [_STANDIN_BANNER, ""]
    counts = ", ".join(f"{report.count(s)} {s}" for s in ("PASS", "FAIL", "NOT RUN"))
    lines += [f"{counts}.", ""]
    lines += _table(("Version", ""), list(report.versions.items()))
    lines += _table(
        ("Check", "Result", "s", "Found"),
        [(c.name, _mark(c.status), f"{c.seconds:.1f}", c.detail) for c in report.checks],
    )
    if report.numbers:
        lines += _table(("Measured", ""), list(report.numbers.items()))
    for check in report.checks:
        if check.evidence:
            lines += [f"<details><summary>{check.name}</summary>", "", "```text"]
            lines += [*check.evidence, "```", "</details>", ""]
    if report.standin:
        lines += [_STANDIN_BANNER]
    text = "\n".join(lines).rstrip() + "\n"
    replaced = {str(Path.home()): "~", **(hidden or {})}
    for path in sorted(replaced, key=len, reverse=True):
        if len(path) > 1:
            text = text.replace(path, replaced[path])
    return text


def _mark(status: Status) -> str:
    return status if status == "PASS" else f"**{status}**"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())
