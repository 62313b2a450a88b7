"""Charts as inline SVG: a flow of counts, bars, a histogram. Colours are classes, so a style sheet can turn them dark.

All are 360 units wide and meant for a column of 340 to 520 pixels: their text is as large on a phone as on a desk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from psychecore.page import text

WIDTH = 360


@dataclass(frozen=True)
class Part:
    """A piece of a bar: what it is called, how many, and its class (kept, dropped, sft, grpo, heldout)."""

    label: str
    count: int
    style: str


@dataclass(frozen=True)
class Node:
    """A stage in a flow: rows that came in (None where unknown), and its parts; dropped ones come last."""

    name: str
    read: int | None
    parts: list[Part]


def number(count: int) -> str:
    """12345 as "12,345"."""
    return f"{count:,}"


def flow(nodes: Sequence[Node], label: str) -> str:
    """Stages from top to bottom, widths by counts; what goes on flows into the next, what is dropped falls aside."""
    largest = max((sum(part.count for part in node.parts) for node in nodes), default=0) or 1
    step, bar, span = 76, 13, WIDTH - 2
    end = f'x="{WIDTH - 1}" text-anchor="end"'

    def wide(count: int) -> float:
        return max(count / largest * span, 1.5) if count else 0.0

    shapes, labels = [], []
    for index, node in enumerate(nodes):
        y, x = 40 + index * step, 1.0
        going = sum(wide(part.count) for part in node.parts if part.style != "dropped")
        if index + 1 < len(nodes):
            below = min(sum(wide(part.count) for part in nodes[index + 1].parts), span)
            top, bottom, middle = y + bar, y + step, y + bar + (step - bar) / 2
            shapes.append(
                f'<path class="ribbon" d="M1 {top} L{1 + going:.1f} {top} C{1 + going:.1f} {middle} {1 + below:.1f} '
                f'{middle} {1 + below:.1f} {bottom} L1 {bottom} Z"/>'
            )
        for part in node.parts:
            width = wide(part.count)
            shapes.append(
                f'<rect class="{part.style}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{bar}"/>' if width else ""
            )
            x += width
        said = ", ".join(f"{number(part.count)} {part.label}" for part in node.parts if part.count) or "nothing"
        came = "" if node.read is None else f'<text class="soft" {end} y="{y - 22}">{number(node.read)} in</text>'
        labels.append(
            f'<text class="strong" x="7" y="{y - 22}">{text(node.name)}</text>'
            f'{came}<text x="7" y="{y - 7}">{text(said)}</text>'
        )
    height = 40 + (len(nodes) - 1) * step + bar + 4
    return _svg(height, label, [*shapes, *labels])


def bars(rows: Sequence[tuple[str, list[Part]]], label: str, largest: int = 0) -> str:
    """Horizontal stacked bars, each under its name and its counts; `largest` is the full width, 0 for the longest."""
    largest = largest or max((sum(part.count for part in parts) for _, parts in rows), default=0) or 1
    shapes = []
    for index, (name, parts) in enumerate(rows):
        y, x = index * 34, 1.0
        shown = name if len(name) <= 34 else name[:33] + "…"
        counts = " + ".join(number(part.count) for part in parts if part.count) or "0"
        shapes.append(f'<text x="1" y="{y + 13}">{text(shown)}</text>')
        shapes.append(f'<text class="soft" x="{WIDTH - 1}" y="{y + 13}" text-anchor="end">{counts}</text>')
        for part in parts:
            width = part.count / largest * (WIDTH - 2)
            shapes.append(f'<rect class="{part.style}" x="{x:.1f}" y="{y + 19}" width="{width:.1f}" height="7"/>')
            x += width
    return _svg(len(rows) * 34, label, shapes)


def histogram(lengths: Counter[int], label: str) -> str:
    """How often each length occurs, in about 24 bins; the longest 1 % share the last one. The median is marked."""
    total = lengths.total()
    low, median, high = (quantile(lengths, q) for q in (0.0, 0.5, 0.99))
    step = next(s for s in _steps() if (high - low) / s <= 24)
    first = low // step * step
    count = (high - first) // step + 1
    bins = [0] * count
    for length, times in lengths.items():
        bins[min((length - first) // step, count - 1)] += times
    wide, tall, largest = (WIDTH - 2) / count, 90, max(bins)
    shapes = [f'<line class="axis" x1="1" x2="{WIDTH - 1}" y1="{tall + 18}" y2="{tall + 18}"/>']
    for index, times in enumerate(bins):
        height = max(times / largest * tall, 1.0) if times else 0.0
        shapes.append(
            f'<rect class="kept" x="{1 + index * wide + 0.5:.1f}" y="{tall + 18 - height:.1f}" '
            f'width="{max(wide - 1, 0.5):.1f}" height="{height:.1f}"><title>{first + index * step} to '
            f"{first + (index + 1) * step - 1}: {number(times)}</title></rect>"
        )
    at = 1 + (median - first + 0.5) / step * wide
    anchor = "start" if at < WIDTH * 0.25 else "end" if at > WIDTH * 0.75 else "middle"
    shapes.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="14" y2="{tall + 18}"/>')
    shapes.append(f'<text x="{at:.1f}" y="10" text-anchor="{anchor}">median {number(median)}</text>')
    last = "" if max(lengths) < first + count * step else " and above"
    shapes.append(f'<text class="soft" x="1" y="{tall + 33}">{number(first)}</text>')
    end = f"{number(first + count * step)}{last}"
    shapes.append(f'<text class="soft" x="{WIDTH - 1}" y="{tall + 33}" text-anchor="end">{end}</text>')
    return _svg(tall + 38, f"{label}: {number(total)} texts, median {median} characters", shapes)


def quantile(lengths: Counter[int], q: float) -> int:
    """The smallest length that at least the share `q` of the texts does not exceed."""
    needed, seen = q * lengths.total(), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= needed:
            return length
    raise ValueError("no lengths")


def _steps() -> list[int]:
    return [digit * 10**power for power in range(9) for digit in (1, 2, 5)]


def _svg(height: float, label: str, shapes: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{text(label)}">{"".join(shapes)}</svg>'
