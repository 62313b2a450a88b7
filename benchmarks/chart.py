"""Two charts as SVG files for the documents: lines over a number, and values with their intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from psychecore.page import text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 680, 320, 64, 190, 34, 44
NAMES = 330  # where the names of intervals end
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#7a6a00",
    "#56b4e9",
    "#444444",
)  # told apart by the colour-blind
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, x: str, y: str) -> str:
    """A line with its points for each series of (x, y), named at its right end; the y axis begins at 0."""
    points = [point for one in series.values() for point in one]
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = 0.0, max(p[1] for p in points)
    across, up = _scale(x_low, x_high, LEFT, WIDTH - RIGHT), _scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    shapes = [_label(x, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "middle"), _label(y, LEFT, TOP - 8, "start")]
    for value in _ticks(y_low, y_high):
        shapes.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}" stroke="#ddd"/>'
        )
        shapes.append(_label(f"{value:,.6g}", LEFT - 6, up(value) + 4, "end"))
    for value in _ticks(x_low, x_high):
        shapes.append(_label(f"{value:,.6g}", across(value), HEIGHT - BOTTOM + 18, "middle"))
    ends = _apart([up(one[-1][1]) for one in series.values()])
    for (name, one), colour, end in zip(series.items(), COLOURS, ends, strict=False):
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in one)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(one) <= 12:
            shapes += [f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="3" fill="{colour}"/>' for a, b in one]
        shapes.append(_label(name, WIDTH - RIGHT + 8, end + 4, "start", colour))
    return _svg(HEIGHT, title, shapes)


def intervals(rows: Sequence[tuple[str, float, float, float]], title: str, x: str) -> str:
    """One line a row of (name, value, low, high): a dot with whiskers."""
    height = TOP + 26 * len(rows) + BOTTOM
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    across = _scale(low, high, NAMES, WIDTH - 70)
    shapes = [_label(x, (NAMES + WIDTH - 70) / 2, height - 8, "middle")]
    for value in _ticks(low, high):
        at = across(value)
        shapes.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="#ddd"/>')
        shapes.append(_label(f"{value:.4g}", at, height - BOTTOM + 18, "middle"))
    for number, (name, value, low, high) in enumerate(rows):
        y = TOP + 26 * number + 13
        shapes.append(_label(name, NAMES - 10, y + 4, "end"))
        shapes.append(f'<line x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[0]}"/>')
        shapes.append(f'<circle cx="{across(value):.1f}" cy="{y}" r="4" fill="{COLOURS[0]}"/>')
        shapes.append(_label(f"{value:.1f}", WIDTH - 60, y + 4, "start"))
    return _svg(height, title, shapes)


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (stop - start)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high.

    >>> _ticks(0, 120)
    [0, 20, 40, 60, 80, 100, 120]
    """
    raw = ((high - low) or 1.0) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= raw * 0.8)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _apart(places: Sequence[float], least: float = 15) -> list[float]:
    """The same places, moved down where two labels would overlap."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    return moved


def _label(words: str, x: float, y: float, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text(words)}</text>'


def _svg(height: float, title: str, shapes: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" {FONT}>'
    back = f'<title>{text(title)}</title><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    return "\n".join([head + back, *shapes, "</svg>", ""])
