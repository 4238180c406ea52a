"""The plot of `bench peers`, as SVG: a picture for each measure, with a bar for each contender.

Plain SVG that needs no library, readable on a light and a dark page. This tunnel's bars have a colour of their own. A
bar is as long as its number says; a thin line goes from the lowest to the highest round. Contenders without a number
have none.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tools.bench.peers_report import BARE, MEASURES, OTHER, OURS, PATHS, Measure, PeersResult, Row, heading, number
from tools.lab.namespace import LabError

FONT = "font-family='sans-serif'"
INK = "#718096"
COLOURS = {BARE: "#a0aec0", OURS: "#2b6cb0", OTHER: "#b7791f"}
COLUMNS = 3
WIDTH, GAP, MARGIN = 300, 24, 16
NAME_WIDTH, NUMBER_WIDTH = 124, 48
LINE, BAR, TITLE = 18, 12, 26
HEADING_CHARACTERS = 150


def write(result: PeersResult, file: str) -> None:
    try:
        Path(file).write_text(draw(result))
    except OSError as error:
        raise LabError(f"--plot {file}: {error.strerror}") from None


def draw(result: PeersResult) -> str:
    parts: list[str] = []
    y: float = MARGIN
    for path in PATHS:
        rows = [row for row in result.rows if row.path == path and any(row.rounds)]
        if rows:
            drawn, y = _path(result, path, rows, y)
            parts += drawn
    width = 2 * MARGIN + COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {y}' {FONT} font-size='12' fill='{INK}'>",
            f"<title>{escape(f'bench peers: {result.conditions.machine}')}</title>",
            *parts,
            "</svg>",
            "",
        ]
    )


def _path(result: PeersResult, path: str, rows: Sequence[Row], y: float) -> tuple[list[str], float]:
    """The pictures of one path from `y` down, and where they end."""
    lines = _wrapped(f"{heading(result.conditions, path, rows)}; hosts with {result.conditions.congestion}")
    parts = [
        f"<text x='{MARGIN}' y='{y + LINE * (at + 0.7):g}' font-weight='bold'>{escape(line)}</text>"
        for at, line in enumerate(lines)
    ]
    y += LINE * len(lines) + GAP / 2
    height = TITLE + LINE * len(rows) + GAP
    measures = [measure for measure in MEASURES if measure.path == path]
    for at, measure in enumerate(measures):
        line, column = divmod(at, COLUMNS)
        parts += _picture(measure, rows, MARGIN + column * (WIDTH + GAP), y + line * height)
    return parts, y + height * -(-len(measures) // COLUMNS) + GAP / 2


def _picture(measure: Measure, rows: Sequence[Row], x: float, y: float) -> list[str]:
    better = "more" if measure.more_is_better else "less"
    title = f"{escape(measure.title)}<tspan fill-opacity='0.7'> ({better} is better)</tspan>"
    parts = [f"<text x='{x:g}' y='{y + 14:g}'>{title}</text>"]
    found = {row.contender: [each[measure.name] for each in row.rounds if measure.name in each] for row in rows}
    greatest = max((max(values) for values in found.values() if values), default=0) or 1
    scale = (WIDTH - NAME_WIDTH - NUMBER_WIDTH) / greatest
    for at, row in enumerate(rows):
        top = y + TITLE + at * LINE
        parts.append(
            f"<text x='{x + NAME_WIDTH - 6:g}' y='{top + 10:g}' text-anchor='end' font-size='11'>"
            f"{escape(row.title)}</text>"
        )
        parts += _bar(measure, row, found[row.contender], x + NAME_WIDTH, top, scale)
    return parts


def _bar(measure: Measure, row: Row, values: Sequence[float], x: float, top: float, scale: float) -> list[str]:
    value = row.value(measure)
    if value is None:
        return []
    low, high = (x + one * scale for one in (min(values), max(values)))
    middle = top + BAR / 2
    width = max(value * scale, 0.5)
    return [
        f"<rect x='{x:g}' y='{top:g}' width='{width:.1f}' height='{BAR}' fill='{COLOURS[row.kind]}'/>",
        f"<path d='M{low:.1f} {middle:g}H{high:.1f}' stroke='{INK}' stroke-width='1.5'/>",
        f"<text x='{high + 4:.1f}' y='{top + 10:g}' font-size='11'>{number(value, measure.digits)}</text>",
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, HEADING_CHARACTERS)
