"""The table of `trtforge list`: one line per engine, in 80 columns as in 200."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from trtforge.units import size

if TYPE_CHECKING:
    from trtforge.store import Manifest
    from trtforge.store.gates import GateState

_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_DATES_AFTER = timedelta(days=60)

_HEADER = ("Engine", "Model", "Backend", "Valid on", "Aliases", "Size", "Published")
# Columns that may be cut, and how much wider than the others each may stay.
_CUT = {1: 6, 2: 0, 3: 4, 4: 0}
_RIGHT = (5, 6)
_GAP = "  "
_NARROWEST = 6


@dataclass(frozen=True)
class Filters:
    """Which engines; None lets all through, text is found anywhere in a name, in any case.

    Attributes:
        model: Part of its name; or its source, or the beginning of its content digest.
        gpu: Part of the name of the GPU, or `cpu`.
        alias: The whole name.
    """

    model: str | None = None
    gpu: str | None = None
    backend: str | None = None
    alias: str | None = None

    def match(self, manifest: "Manifest", aliases: Sequence[str]) -> bool:
        from trtforge.store.resolve import is_model

        toolchain = manifest.core.built_with
        model = manifest.core.model
        return (
            (self.model is None or _in(self.model, model.name) or is_model(model, self.model))
            and (self.gpu is None or _in(self.gpu, toolchain.gpu_name or f"cpu {toolchain.cpu}"))
            and (self.backend is None or self.backend == toolchain.backend)
            and (self.alias is None or self.alias in aliases)
        )


def engine_json(manifest: "Manifest", aliases: Sequence[str], gates: "GateState") -> dict[str, Any]:
    """One entry of `trtforge list --json`."""
    core, toolchain = manifest.core, manifest.core.built_with
    return {
        "engine_id": manifest.engine_id,
        "model": core.model.name,
        "source": core.model.source,
        "backend": toolchain.backend,
        "backend_version": toolchain.backend_version,
        "valid_on": toolchain.gpu_name or toolchain.cpu,
        "compute_capability": toolchain.compute_capability,
        "aliases": list(aliases),
        "gates": gates.to_json(),
        "size_bytes": core.size_bytes,
        "created_at": manifest.created_at.isoformat(timespec="seconds"),
    }


def print_engines(
    console: Console,
    engines: Iterable[tuple["Manifest", Sequence[str]]],
    now: datetime,
    failed: Collection[str] = (),
) -> None:
    """Print one line per engine. A terminal's width cuts long names; a pipe gets them whole.

    Args:
        failed: Ids of those that failed a gate, and that nobody let pass.
    """
    marked = (
        (manifest, ["gate failed", *aliases] if manifest.engine_id in failed else aliases)
        for manifest, aliases in engines
    )
    rows = [_HEADER, *(_cells(manifest, aliases, now) for manifest, aliases in marked)]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(_HEADER))]
    if console.is_terminal:
        _shrink(widths, console.width)
    for number, row in enumerate(rows):
        cells = [
            text.rjust(width) if i in _RIGHT else _fitted(text, width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = Text(_GAP.join(cells).rstrip(), style="" if number else "bold")
        console.print(line, soft_wrap=True)


def _cells(manifest: "Manifest", aliases: Sequence[str], now: datetime) -> tuple[str, ...]:
    toolchain = manifest.core.built_with
    return (
        manifest.engine_id[:12],
        manifest.core.model.name,
        toolchain.backend,
        (toolchain.gpu_name or f"CPU {toolchain.cpu}").removeprefix("NVIDIA "),
        ", ".join(aliases),
        size(manifest.core.size_bytes),
        age(manifest.created_at, now),
    )


def _shrink(widths: list[int], total: int) -> None:
    """Take room from the widest of the columns that may be cut, until the line fits."""
    while sum(widths) + len(_GAP) * (len(widths) - 1) > total:
        widest = max(_CUT, key=lambda i: widths[i] - _CUT[i])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1


def _fitted(text: str, width: int) -> str:
    return (
        set_cell_size(text, width)
        if cell_len(text) <= width
        else set_cell_size(text, width - 1) + "…"
    )


def age(then: datetime, now: datetime) -> str:
    """`3 h ago`; after two months the date."""
    passed = now - then
    if passed > _DATES_AFTER:
        return f"{then:%Y-%m-%d}"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if passed >= unit:
            return f"{passed // unit} {name} ago"
    return "now"  # also for a clock that is ahead of this one


def _in(part: str, name: str) -> bool:
    return part.casefold() in name.casefold()
