"""Draw curves as SVG, with logarithmic axes: a file that any browser and GitHub shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from bench.table import Row

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 50, 50  # pixels around the curves
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
STYLE = "font-family='sans-serif' font-size='12' fill='#444'"


@dataclass(frozen=True)
class Curves:
    """Curves over one axis."""

    title: str
    across: str
    """What the horizontal axis shows."""

    lines: Mapping[str, Sequence[tuple[float, float]]]
    bar: float | None = None
    """Drawn as a dashed line."""


@dataclass
class Measured:
    """The rows and the curves of one part, these by the name of their file."""

    rows: list[Row] = field(default_factory=list)
    curves: dict[str, Curves] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """Maps values of one axis to pixels."""

    low: float
    high: float
    first: float
    last: float

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        return [10.0**power for power in range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)]


def scale_of(values: Sequence[float], first: float, last: float, *, whole: bool) -> Scale:
    """Return a scale for positive values. With `whole`, it begins and ends at a power of ten."""
    low, high = math.log10(min(values)), math.log10(max(values))
    if whole:
        low, high = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    return Scale(low, max(high, low + 1.0), first, last)


def draw(curves: Curves) -> str:
    points = [point for line in curves.lines.values() for point in line]
    across = scale_of([x for x, _ in points], LEFT, WIDTH - RIGHT, whole=False)
    up = scale_of([y for _, y in points] + ([curves.bar] if curves.bar else []), HEIGHT - BOTTOM, TOP, whole=True)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>",
        f"<title>{escape(curves.title)}</title><rect width='{WIDTH}' height='{HEIGHT}' fill='#fff'/>",
        text(LEFT, 25, curves.title, "font-weight='bold'"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, curves.across, "text-anchor='middle'"),
    ]
    for value in up.ticks:
        parts.append(rule(LEFT, up.at(value), WIDTH - RIGHT, up.at(value), "#ddd"))
        parts.append(text(LEFT - 8, up.at(value) + 4, label(value), "text-anchor='end'"))
    for value in across.ticks:
        parts.append(rule(across.at(value), TOP, across.at(value), HEIGHT - BOTTOM, "#ddd"))
        parts.append(text(across.at(value), HEIGHT - BOTTOM + 18, label(value), "text-anchor='middle'"))
    if curves.bar is not None:
        parts.append(rule(LEFT, up.at(curves.bar), WIDTH - RIGHT, up.at(curves.bar), "#444", "stroke-dasharray='6 4'"))
        parts.append(text(LEFT + 6, up.at(curves.bar) - 5, f"bar: {label(curves.bar)}"))
    for number, (name, line) in enumerate(curves.lines.items()):
        parts += drawn_line([(across.at(x), up.at(y)) for x, y in line], name, COLOURS[number % len(COLOURS)], number)
    return "\n".join([*parts, "</svg>", ""])


def drawn_line(points: Sequence[tuple[float, float]], name: str, colour: str, number: int) -> list[str]:
    """Return a line with its points, and its name in the legend."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in points]
    legend_at = TOP + 8 + 20 * number
    return [
        f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>",
        *dots,
        rule(WIDTH - RIGHT + 8, legend_at, WIDTH - RIGHT + 24, legend_at, colour, "stroke-width='2'"),
        text(WIDTH - RIGHT + 30, legend_at + 4, name),
    ]


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {STYLE} {attributes}>{escape(content)}</text>"


def rule(x: float, y: float, to_x: float, to_y: float, colour: str, attributes: str = "") -> str:
    return f"<line x1='{x:.1f}' y1='{y:.1f}' x2='{to_x:.1f}' y2='{to_y:.1f}' stroke='{colour}' {attributes}/>"


def label(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
