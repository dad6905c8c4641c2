"""Line charts as SVG, for markdown: a `data:` URL needs no host, and no library draws it.

They bring their own light ground, so that they read the same on a light page and on a dark one.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 616, 68, 272
_INK, _MUTED, _RULE, _GROUND = "#1c2128", "#57606a", "#d8dee4", "#ffffff"
# Told apart by the colour-blind too, and by their dashes in print.
_STROKES = (("#0550ae", ""), ("#bc4c00", "7 4"), ("#1a7f37", "2 4"), ("#8250df", "10 3 2 3"))


@dataclass(frozen=True)
class Series:
    """One line: its name, and points by rising x; those that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """What a chart says; the y axis begins at 0.

    Attributes:
        title: Names what the y axis counts, too.
        series: Four at most.
        x_ticks: Few x values that are doubled from one to the next, such as concurrencies: the
            axis is logarithmic, and every point has its value written beside it. Without: linear.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    x_ticks: Sequence[float] = ()


def svg(chart: Chart) -> str:
    """The chart as an SVG document."""
    lines = [[p for p in line.points if all(map(math.isfinite, p))] for line in chart.series]
    points = [point for line in lines for point in line]
    x_ticks = sorted(chart.x_ticks) or _ticks(max((x for x, _ in points), default=1.0))
    y_ticks = _ticks(max((y for _, y in points), default=1.0))
    # Room for the values beside the outer points.
    left, right = (_LEFT + 24, _RIGHT - 24) if chart.x_ticks else (_LEFT, _RIGHT)
    scale = math.log if chart.x_ticks and x_ticks[0] > 0 else float
    first, span = scale(x_ticks[0]), scale(x_ticks[-1]) - scale(x_ticks[0])

    def x_at(x: float) -> float:
        return left + (right - left) * ((scale(x) - first) / span if span else 0.5)

    def y_at(y: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * y / y_ticks[-1]

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-family="system-ui, sans-serif">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="{_GROUND}" stroke="{_RULE}"/>',
        _text(_LEFT, 24, chart.title, "start", _INK, 15),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 12, chart.x_label, "middle", _MUTED),
    ]
    for tick in y_ticks:
        parts.append(f'<path d="M{_LEFT} {y_at(tick):.1f}H{_RIGHT}" stroke="{_RULE}"/>')
        parts.append(_text(_LEFT - 8, y_at(tick) + 4, f"{tick:,g}", "end", _MUTED))
    parts += [_text(x_at(x), _BOTTOM + 18, f"{x:,g}", "middle", _MUTED) for x in x_ticks]
    legend_x = float(_LEFT)
    for line, found, (colour, dashes) in zip(chart.series, lines, _STROKES, strict=False):
        stroke = f'fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"'
        parts.append(f'<path d="M{legend_x:g} 44h26" {stroke}/>')
        parts.append(_text(legend_x + 32, 48, line.name, "start", _INK))
        legend_x += 56 + 7 * len(line.name)
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in found)
        parts.append(f'<polyline points="{path}" {stroke} stroke-linejoin="round"/>')
        for x, y in found if chart.x_ticks else ():
            # The values of the lines below go below, so that they do not cover each other.
            beside = y_at(y) - 9 if y == max(v for u, v in points if u == x) else y_at(y) + 19
            parts.append(f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="4" fill="{colour}"/>')
            parts.append(_text(x_at(x), beside, _short(y), "middle", colour))
    return "".join([*parts, "</svg>"])


def image(chart: Chart) -> str:
    """The chart as a markdown image, on one line."""
    data = base64.b64encode(svg(chart).encode()).decode()
    title = chart.title.translate(str.maketrans("[]\n\r", "()  "))
    return f"![{title}](data:image/svg+xml;base64,{data})"


def _text(x: float, y: float, text: str, anchor: str, fill: str, size: int = 12) -> str:
    style = f'text-anchor="{anchor}" fill="{fill}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most` or just above it: three to six of them."""
    most = most if most > 1e-9 else 1.0
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    return [round(step * n, 12) for n in range(math.ceil(most / step - 1e-9) + 1)]
