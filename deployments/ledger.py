"""Where the parts of a sync write down what they find and do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deployments.changes import Change, Notice, SyncReport, differences
from deployments.server import Server


@dataclass
class Ledger:
    """The server, and what has been found and done there so far."""

    server: Server
    changes: list[Change] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    unchanged: int = 0

    def create(self, kind: str, name: str, path: str, body: Any) -> Any:
        """Make it; the server's answer, or None for a dry run."""
        made = self.server.write(f"{kind} {name}", "POST", path, body)
        self.changes.append(Change(kind, name, "create"))
        return made

    def match(
        self,
        kind: str,
        name: str,
        have: Mapping[str, Any],
        want: Mapping[str, Any],
        path: str,
        *,
        method: Literal["PATCH", "PUT"] = "PATCH",
        body: dict[str, Any] | None = None,
    ) -> None:
        """Send `body` (if not given: `want`) where `have` differs from `want`."""
        details = differences(have, want)
        if not details:
            self.unchanged += 1
            return
        self.server.write(f"{kind} {name}", method, path, dict(want) if body is None else body)
        self.changes.append(Change(kind, name, "update", details))

    def delete(self, kind: str, name: str, path: str) -> None:
        self.server.write(f"{kind} {name}", "DELETE", path)
        self.changes.append(Change(kind, name, "delete"))

    def notice(
        self, kind: str, name: str, status: Literal["missing", "skipped", "kept"], detail: str
    ) -> None:
        self.notices.append(Notice(kind, name, status, detail))

    def report(self, *, dry_run: bool) -> SyncReport:
        return SyncReport(tuple(self.changes), tuple(self.notices), self.unchanged, dry_run)
