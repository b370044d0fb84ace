"""Draw small line charts as SVG, both axes in powers of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log2
from xml.sax.saxutils import escape

COLOURS = ("#1d4ed8", "#c2410c", "#047857")
WIDTH, HEIGHT = 300, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 40, 48


@dataclass(frozen=True)
class Series:
    """A named line through points (x, y), all above 0."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart; `label` names the horizontal axis."""

    label: str
    series: Sequence[Series]


def draw_panels(title: str, panels: Sequence[Panel]) -> str:
    """Return an SVG file: charts side by side with a common vertical scale."""
    values = [log2(y) for panel in panels for series in panel.series for _, y in series.points]
    low, high = floor(min(values)), ceil(max(values))
    parts = [words(LEFT, 18, title)]
    for number, series in enumerate(panels[0].series):
        x = LEFT + 150 + 130 * number
        parts.append(f'<path d="M{x} 14 h16" stroke="{COLOURS[number]}" stroke-width="2"/>')
        parts.append(words(x + 22, 18, series.name))
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({WIDTH * number} 0)">')
        parts += draw_panel(panel, low, max(high, low + 1))
        parts.append("</g>")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}" '
            'role="img" font-family="Helvetica, Arial, sans-serif" font-size="11">',
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def draw_panel(panel: Panel, low: int, high: int) -> list[str]:
    """Return the elements of one chart whose values range from 2^low to 2^high."""
    across = sorted({x for series in panel.series for x, _ in series.points})
    first, last = log2(across[0]), max(log2(across[-1]), log2(across[0]) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (log2(x) - first) / (last - first)
        up = (log2(y) - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * right, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    parts = []
    for power in range(low, high + 1):
        x, y = place(across[0], 2.0**power)
        parts.append(f'<path d="M{x:.1f} {y:.1f} H{WIDTH - RIGHT}" stroke="#e2e8f0"/>')
        parts.append(words(x - 6, y + 4, f"{2.0**power:.3g}", "end"))
    for value in across:
        x, _ = place(value, 2.0**low)
        parts.append(words(x, HEIGHT - BOTTOM + 16, f"{value:g}", "middle"))
    parts.append(words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, panel.label, "middle"))
    for colour, series in zip(COLOURS, panel.series, strict=False):
        at = [place(*point) for point in series.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        )
        for (x, y), (value, height) in zip(at, series.points, strict=True):
            title = escape(f"{series.name}: {height:.3g} at {value:g} {panel.label}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{title}</title>'
                "</circle>"
            )
    return parts


def words(x: float, y: float, text: str, anchor: str = "start") -> str:
    """Return a text element at (x, y)."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#0f172a">{escape(text)}</text>'
    )
