"""The pictures of docs/design.md, drawn from the tree itself, so that they stay true: python -m tools.diagrams

    docs/pictures/tree.svg        the folders of pipeline/ in the layers that pyproject.toml holds them to
    docs/pictures/topology.svg    the duties of one lane and the rings between them (pipeline.runtime.topology)

A test compares the files with what this module draws. Each picture is plain SVG, readable on a light and a dark page.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Mapping
from html import escape
from pathlib import Path

from pipeline.runtime.topology import RINGS, Stages

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"

FONT = "font-family='sans-serif'"
INK, FILL, RING = "#4a5568", "#edf2f7", "#2b6cb0"

SHAPES = {
    "fec, datagrams": "with FEC and datagrams",
    "fec": "with FEC",
    "off, datagrams": "without FEC, with datagrams",
    "off": "without FEC",
    "compat": "compat",
}
"""The shapes of the topology, the fullest first, and their captions."""
KINDS = ("tun", "fec", "tcp", "dgram")  # from left to right
OUTSIDE = {"tun": "TUN queue", "tcp": "connections", "dgram": "datagrams"}
BOX_WIDTH, GAP = 110, 190
TRACK = 44  # height of a ring's track
MARGIN = 24

TREE_WIDTH, LAYER_HEIGHT, ROW_GAP, COLUMN_GAP = 1000, 76, 10, 12
LINE_HEIGHT, LETTER_WIDTH = 15, 6.6

Duty = tuple[str, str]  # kind of worker, duty
Way = list[list[Duty]]  # of a ring: its stages
Ends = dict[Duty, tuple[float, float]]  # the first and the last track of a duty


def main() -> int:
    """Write all pictures anew."""
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (PICTURES / name).write_text(draw())
    return 0


# -- the tree


def tree() -> str:
    """The folders, layer by layer: imports point down. Workers stand on `runtime`, beside what they must not import."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == ["pipeline"])
    beside = next(n for n, layer in enumerate(layers) if "runtime" in layer)
    inside = TREE_WIDTH - 2 * MARGIN
    half = (inside - COLUMN_GAP) / 2
    parts = []
    for number, layer in enumerate(layers):
        folders = [f"pipeline/{name.strip()}" for name in layer.split("|")]
        y = MARGIN + number * (LAYER_HEIGHT + ROW_GAP)
        parts += _row(folders, MARGIN, y, half if number < beside else inside, LAYER_HEIGHT)
    height = (beside * (LAYER_HEIGHT + ROW_GAP) - ROW_GAP - COLUMN_GAP) / 2
    for row in range(2):
        folders = [f"workers/{kind}" for kind in KINDS[2 * row : 2 * row + 2]]
        parts += _row(folders, MARGIN + half + COLUMN_GAP, MARGIN + row * (height + COLUMN_GAP), half, height)
    return _svg(TREE_WIDTH, 2 * MARGIN + len(layers) * (LAYER_HEIGHT + ROW_GAP) - ROW_GAP, parts)


def _row(folders: list[str], left: float, y: float, width: float, height: float) -> list[str]:
    """Boxes of equal width with the folders' names and the first sentence of their docstrings."""
    each = (width - COLUMN_GAP * (len(folders) - 1)) / len(folders)
    parts = []
    for column, folder in enumerate(folders):
        x = left + column * (each + COLUMN_GAP)
        parts.append(_box(x, y, each, height))
        parts.append(_text(x + 10, y + 19, folder, size=14, bold=True))
        lines = _wrapped(_first_sentence(folder), int(each / LETTER_WIDTH))
        parts += [_text(x + 10, y + 37 + n * LINE_HEIGHT, line, size=11) for n, line in enumerate(lines)]
    return parts


def _first_sentence(folder: str) -> str:
    path = ROOT / folder
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# -- the topology


def topology() -> str:
    """One lane in each shape: duties as boxes, rings as arrows, the outbound half above the inbound half."""
    parts: list[str] = []
    y = float(MARGIN)
    for shape, caption in SHAPES.items():
        parts.append(_text(MARGIN, y + 14, caption, size=15, bold=True))
        drawn, height = _lane(RINGS[shape], y + 28)
        parts += drawn
        y += height + 58
    return _svg(2 * MARGIN + 2 * 150 + len(KINDS) * BOX_WIDTH + (len(KINDS) - 1) * GAP, int(y), parts)


def _lane(rings: Mapping[str, Stages], top: float) -> tuple[list[str], float]:
    """The drawing of one shape from `top` on, and its height."""
    stages = {kind: [[(each.worker, each.duty) for each in stage] for stage in ring] for kind, ring in rings.items()}
    outbound = sorted((k for k in stages if stages[k][-1][0] == ("tcp", "outbound")), key=lambda k: len(stages[k]))
    outbound.sort(key=lambda kind: stages[kind][0][0][1] == "inbound")  # transit comes from below
    inbound = [kind for kind in stages if kind not in outbound][::-1]
    tracks = {kind: top + TRACK * (n + 0.5) for n, kind in enumerate(outbound)}
    below = top + TRACK * len(outbound) + 26
    tracks |= {kind: below + TRACK * (n + 0.5) for n, kind in enumerate(inbound)}
    ends = _duties(stages, tracks)
    parts = []
    for kind, ring in stages.items():
        parts += _ring(kind, ring, tracks[kind], ends)
    for (worker, duty), (first, last) in ends.items():
        x = _x(worker)
        parts.append(_box(x, first - TRACK / 2 + 5, BOX_WIDTH, last - first + TRACK - 10))
        middle = (first + last) / 2
        parts.append(_text(x + BOX_WIDTH / 2, middle - 2, worker, size=14, bold=True, anchor="middle"))
        parts.append(_text(x + BOX_WIDTH / 2, middle + 13, duty, size=11, anchor="middle"))
    parts += _outside(ends)
    return parts, below + TRACK * len(inbound) - top


def _duties(stages: Mapping[str, Way], tracks: Mapping[str, float]) -> Ends:
    """The first and the last track of each duty. A duty that only taps a ring is drawn beside it."""
    found: dict[Duty, list[float]] = {}
    for kind, ring in stages.items():
        for stage in ring:
            for duty in stage:
                if (duty == stage[0] or _is_beyond(stage, duty)) and not _comes_from_below(ring, duty):
                    found.setdefault(duty, []).append(tracks[kind])
    return {duty: (min(ys), max(ys)) for duty, ys in found.items()}


def _is_beyond(stage: list[Duty], duty: Duty) -> bool:
    """Whether a member is drawn to the right of the first one, with an arrow that goes on to it."""
    return KINDS.index(duty[0]) > KINDS.index(stage[0][0])


def _comes_from_below(ring: Way, duty: Duty) -> bool:
    return duty == ring[0][0] and duty[1] == "inbound" and ring[-1][0][1] == "outbound"


def _ring(kind: str, ring: Way, y: float, ends: Ends) -> list[str]:
    """Arrows from stage to stage, with the ring's name; other members of a stage are beyond the first, or branches."""
    parts = []
    source = ring[0][0]
    if _comes_from_below(ring, source):
        x, from_y = _x(source[0]) + BOX_WIDTH / 2, ends[source][0] - TRACK / 2 + 5
        target = _x(ring[1][0][0])
        parts.append(_arrow([(x, from_y), (x, y), (target, y)]))
        parts.append(_label(x + BOX_WIDTH / 2 + 24, y, kind))
        parts += [_onward(ring[1][0], other, y) for other in ring[1][1:]]
        ring, source = ring[1:], ring[1][0]
    for number, stage in enumerate(ring[1:]):
        right = KINDS.index(stage[0][0]) > KINDS.index(source[0])
        start = _x(source[0]) + (BOX_WIDTH if right else 0)
        end = _x(stage[0][0]) + (0 if right else BOX_WIDTH)
        parts.append(_arrow([(start, y), (end, y)]))
        if number == 0:
            parts.append(_label(start + (70 if right else -70), y, kind))
        for other in stage[1:]:
            if _is_beyond(stage, other):
                parts.append(_onward(stage[0], other, y))
            else:
                x = _x(other[0]) + BOX_WIDTH / 2
                parts.append(_arrow([(x, y), (x, ends[other][1] + TRACK / 2 - 5)]))
        source = stage[0]
    return parts


def _onward(member: Duty, beyond: Duty, y: float) -> str:
    return _arrow([(_x(member[0]) + BOX_WIDTH, y), (_x(beyond[0]), y)])


def _outside(ends: Ends) -> list[str]:
    """The TUN queue at the left, connections and datagrams at the right: above the arrows that go on to the right."""
    parts = []
    for (worker, duty), (first, last) in ends.items():
        if worker not in OUTSIDE:
            continue
        goes_on = worker == "tcp" and ("dgram", duty) in ends
        x, y = _x(worker), first - TRACK / 2 + 12 if goes_on else (first + last) / 2
        x, far = (x, x - 40) if worker == "tun" else (x + BOX_WIDTH, x + BOX_WIDTH + 40)
        inwards = (worker == "tun") == (duty == "outbound")
        parts.append(_arrow([(far, y), (x, y)] if inwards else [(x, y), (far, y)], INK))
        anchor = "end" if worker == "tun" else "start"
        parts.append(_text(far + (-6 if worker == "tun" else 6), y + 4, OUTSIDE[worker], size=11, anchor=anchor))
    return parts


def _x(worker: str) -> float:
    return MARGIN + 150 + KINDS.index(worker) * (BOX_WIDTH + GAP)


# -- SVG


def _svg(width: int, height: int, parts: list[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>\n"
        f"<rect width='{width}' height='{height}' fill='white'/>\n"
        f"<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' markerHeight='8' orient='auto'>"
        f"<path d='M0,0 L8,4 L0,8 z' fill='{RING}'/></marker></defs>\n"
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _box(x: float, y: float, width: float, height: float) -> str:
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='5' fill='{FILL}' "
        f"stroke='{INK}' stroke-width='1.2'/>"
    )


def _text(x: float, y: float, text: str, size: int, bold: bool = False, anchor: str = "start") -> str:
    weight = " font-weight='bold'" if bold else ""
    style = f"{FONT} font-size='{size}' fill='{INK}' text-anchor='{anchor}'{weight}"
    return f"<text x='{x:g}' y='{y:g}' {style}>{escape(text)}</text>"


def _label(x: float, y: float, text: str) -> str:
    width = 12 + 7 * len(text)
    return (
        f"<rect x='{x - width / 2:g}' y='{y - 11:g}' width='{width}' height='22' rx='11' fill='white' stroke='{RING}'/>"
        + _text(x, y + 4, text, size=12, anchor="middle")
    )


def _arrow(points: list[tuple[float, float]], colour: str = RING) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.8' marker-end='url(#head)'/>"


DRAWINGS = {"tree.svg": tree, "topology.svg": topology}

if __name__ == "__main__":
    sys.exit(main())
