"""Draw a chart of accuracy against vision tokens, as SVG."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from nvila_core.demo.policies import DETAIL_KIND, PolicyScore

WIDTH, HEIGHT = 700, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 170, 36, 56
SERIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "all questions": ("#1d4ed8", ()),
    "those about the sign": ("#c2410c", (DETAIL_KIND,)),
}
"""Lines of the chart by name: colour, and kinds of question (none: all)."""


def draw_policies(scores: Sequence[PolicyScore]) -> str:
    """Return an SVG file with a line for all questions and one for those that need detail.

    Each line has a point for every policy, which is filled if the policy is adaptive.
    """
    ordered = sorted(scores, key=lambda score: score.tokens_per_frame)
    step = max(1.0, round(ordered[-1].tokens_per_frame / 5))
    max_tokens = step * -(-ordered[-1].tokens_per_frame // step)

    def place(tokens: float, share: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * tokens / max_tokens, TOP + down * (1 - share)

    parts = []
    for percent in range(0, 101, 25):
        x, y = place(0, percent / 100)
        parts += [
            f'<path d="M{x:.1f} {y:.1f} H{WIDTH - RIGHT}" stroke="#e2e8f0"/>',
            text(x - 8, y + 4, f"{percent} %", "end"),
        ]
    for number in range(round(max_tokens / step) + 1):
        x, y = place(number * step, 0)
        parts.append(text(x, y + 20, f"{number * step:g}", "middle"))
    parts += [
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "vision tokens per frame", "middle"),
        text(LEFT - 8, TOP - 16, "correct answers", "middle"),
    ]
    for name, (colour, kinds) in SERIES.items():
        points = [place(score.tokens_per_frame, score.accuracy(*kinds)) for score in ordered]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for score, (x, y) in zip(ordered, points, strict=True):
            filled = colour if score.policy == "adaptive" else "#ffffff"
            title = escape(f"{score.name}: {score.accuracy(*kinds):.1%} of {name}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" stroke="{colour}" fill="{filled}">'
                f"<title>{title}</title></circle>"
            )
    for number, (name, (colour, _)) in enumerate(SERIES.items()):
        x, y = WIDTH - RIGHT + 16, TOP + 12 + 20 * number
        parts += [
            f'<path d="M{x} {y - 4} h14" stroke="{colour}"/>',
            text(x + 20, y, name, size=11),
        ]
    x, y = WIDTH - RIGHT + 16, TOP + 56
    for line in ("filled: adaptive,", "other: the same for", "every frame"):
        parts.append(text(x, y, line, size=11))
        y += 15
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'font-family="Helvetica, Arial, sans-serif" stroke-width="1.6">',
            "<title>Correct answers against vision tokens per frame</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    """Return an SVG text element at a position in pixels."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#334155" stroke="none">{escape(words)}</text>'
    )
