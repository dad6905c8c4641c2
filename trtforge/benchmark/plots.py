"""Plots of the report page: inline SVG in the page's own colours, light and dark.

Small enough to be read at the width of a phone, where each fills the line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 408, 26, 208
_DIGIT = 7.6
_MOST_STEPS = 120
# Values closer than this (in pixels) would be written over each other.
_APART = 15


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        labels: What is written beside each point; empty: nothing, and no dots.
        style: Index of its colour; the same one means the same thing in every plot of a page.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int
    labels: Sequence[str] = ()
    dashed: bool = False


def plot(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    y_most: float | None = None,
) -> str:
    """An SVG element; y begins at 0, and so does x unless it is logarithmic."""
    lines = [
        Line(
            line.name,
            [p for p in line.points if _drawable(p, log_x)],
            line.style,
            line.labels,
            line.dashed,
        )
        for line in lines
    ]
    xs = [x for line in lines for x, _ in line.points] or [1.0]
    x_ticks = _log_ticks(min(xs), max(xs)) if log_x else _ticks(max(xs))
    y_ticks = _ticks(y_most or max((y for line in lines for _, y in line.points), default=1.0))
    scale = math.log if log_x else float
    low = scale(min(x_ticks[0], *xs)) if log_x else 0.0
    high = scale(max(x_ticks[-1], *xs))

    def at(x: float, y: float) -> tuple[float, float]:
        share = (scale(x) - low) / (high - low) if high > low else 0.5
        return _LEFT + (_RIGHT - _LEFT) * share, _BOTTOM - (_BOTTOM - _TOP) * y / y_ticks[-1]

    parts = [f"<title>{escape(title)}</title>"]
    for tick in y_ticks:
        y = at(x_ticks[0], tick)[1]
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:,g}", "end"))
    shown = -math.inf
    for tick in x_ticks:
        x = at(tick, 0)[0]
        if x - shown >= 34:
            parts.append(_tick(x, f"{tick:,g}"))
            shown = x
    parts.append(_text(_RIGHT, _BOTTOM + 35, x_label, "end", "label"))
    parts.append(_text(4, 12, y_label, "start", "label"))
    legend = float(_LEFT)
    row = _BOTTOM + 57
    for line in lines:
        width = 30 + 6.9 * len(line.name)
        if legend + width > _RIGHT and legend > _LEFT:
            legend, row = float(_LEFT), row + 18
        look = f'class="line s{line.style}{" dashed" if line.dashed else ""}"'
        parts.append(f'<path {look} d="M{legend:.0f} {row - 4}h18"/>')
        parts.append(_text(legend + 23, row, line.name, "start", "legend"))
        legend += width
        places = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline {look} points="{path}"/>')
        written: list[tuple[float, float]] = []
        for (x, y), label in zip(places, line.labels, strict=False):
            parts.append(f'<circle class="dot s{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
            if all(math.hypot(x - u, y - v) >= _APART for u, v in written):
                anchor, beside = ("end", x - 7) if x > _RIGHT - 40 else ("start", x + 7)
                parts.append(_text(beside, y + (-6 if y > _TOP + 14 else 14), label, anchor))
                written.append((x, y))
    size = f"0 0 {_WIDTH} {row + 12}"
    head = f'<svg viewBox="{size}" role="img" aria-label="{escape(title)}">'
    return "".join([head, *parts, "</svg>"])


def share_below(values: Sequence[float], scale: float = 1e3) -> list[tuple[float, float]]:
    """The empirical distribution: which share of the values (in %) is at or below each of them."""
    ordered = sorted(values)
    count = len(ordered)
    every = max(1, count // _MOST_STEPS)
    kept = [*range(0, count, every), count - 1] if count else []
    steps: list[tuple[float, float]] = []
    for index in dict.fromkeys(kept):
        x = ordered[index] * scale
        # Up from the share before, as a staircase.
        steps.append((x, steps[-1][1] if steps else 0.0))
        steps.append((x, 100 * (index + 1) / count))
    return steps


def _drawable(point: tuple[float, float], log_x: bool) -> bool:
    return all(map(math.isfinite, point)) and (point[0] > 0 or not log_x)


def _tick(x: float, text: str) -> str:
    """A number below the x axis, as a whole within the picture."""
    if x + _DIGIT * len(text) / 2 > _WIDTH:
        return _text(_WIDTH - 1, _BOTTOM + 17, text, "end")
    return _text(x, _BOTTOM + 17, text, "middle")


def _text(x: float, y: float, text: str, anchor: str, name: str = "tick") -> str:
    return (
        f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _ticks(most: float) -> list[float]:
    most = most if most > 1e-12 else 1.0
    unit = 10.0 ** math.floor(math.log10(most / 5))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= most / 5 * 0.999)
    return [round(step * n, 12) for n in range(math.ceil(most / step - 1e-9) + 1)]


def _log_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten around the values."""
    first = math.floor(math.log10(least))
    last = math.ceil(math.log10(most)) + 1
    steps = [m * 10.0**p for p in range(first, last) for m in (1, 2, 5)]
    low = max((s for s in steps if s <= least), default=steps[0])
    high = min((s for s in steps if s >= most), default=steps[-1])
    return [round(s, 12) for s in steps if low <= s <= high]
