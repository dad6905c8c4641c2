"""Findings as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "missing", "not checked"]
FORMAT = 1


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: What it belongs to: `machine`, `gpu`, `container`, `aoti`, `trtllm`, `services`.
        status: `warning`: it works, and something about it will matter. `missing`: it is not
            there, or does not work. `not checked`: nothing is known, `detail` says why.
        detail: What was found.
        remedy: What to do about it; empty when there is nothing to do.
    """

    area: str
    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings.

    Attributes:
        backends: Which backends could compile an engine here now.
    """

    findings: tuple[Finding, ...]
    backends: Mapping[str, bool]

    def can_build(self, backend: str | None = None) -> bool:
        """Whether that backend, or any, could compile here."""
        return any(self.backends.values()) if backend is None else self.backends[backend]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "backends": dict(self.backends),
            "findings": [asdict(finding) for finding in self.findings],
        }
