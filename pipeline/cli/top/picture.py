"""The pipeline as it is wired: a row for each kind of ring, with its stages and how full it is before each. Pure.

    coded    tun-0 -[##........]  18% -> fec-0 -[..........]   0% -> tcp-0

With several lanes, one row stands for the rings of all, and shows the fullest of them. The rows follow from the rings
of the snapshot, and so from the topology of the running instance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

BAR_WIDE, BAR_NARROW = 10, 4
NARROW = 78  # columns

HALF_FULL, FULL = 0.5, 0.9

SILENT_MS = 1000  # a duty beats fifty times a second


class Glyphs(NamedTuple):
    """The characters of a picture."""

    full: str
    empty: str
    line: str
    arrow: str
    down: str
    up: str


FANCY = Glyphs("█", "·", "─", "▶", "↓", "↑")
PLAIN = Glyphs("#", ".", "-", ">", "rx", "tx")


class Verdict(NamedTuple):
    """How a worker is, in a word, and the style of it."""

    word: str
    style: str

    @property
    def is_trouble(self) -> bool:
        return self.style == "bold red"


def verdict(worker: Mapping[str, Any], is_visible: bool) -> Verdict:
    """`is_visible`: /proc shows the processes of this instance."""
    state = worker["state"]
    if state in ("backoff", "failed"):
        return Verdict("dead", "bold red")
    if state != "running":
        return Verdict(state, "yellow")
    process = worker["process"]
    if process in ("stopped", "traced"):
        return Verdict(process.upper(), "bold red")
    if is_visible and process in ("", "zombie", "dead"):
        return Verdict("dead", "bold red")
    age = worker["heartbeat_age_ms"]
    if age is not None and age > SILENT_MS:
        return Verdict(f"silent {age / 1000:.0f}s", "bold red")
    return Verdict("running", "green")


def verdicts(snapshot: Mapping[str, Any]) -> dict[str, Verdict]:
    """Of every worker, by name."""
    is_visible = bool(snapshot["supervisor"]["process"]) or any(each["process"] for each in snapshot["workers"])
    return {each["name"]: verdict(each, is_visible) for each in snapshot["workers"]}


def picture(snapshot: Mapping[str, Any], glyphs: Glyphs, width: int) -> list[Text]:
    """One row for each kind of ring."""
    found = verdicts(snapshot)
    lanes = 1 + max((ring["lane"] for ring in snapshot["rings"]), default=0)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for ring in snapshot["rings"]:
        kinds.setdefault(ring["kind"], []).append(ring)
    return [_row(kind, rings, found, lanes, glyphs, width) for kind, rings in kinds.items()]


def _row(
    kind: str, rings: Sequence[dict[str, Any]], found: Mapping[str, Verdict], lanes: int, glyphs: Glyphs, width: int
) -> Text:
    row = Text(f" {kind:<8} ", style="bold")
    row.append_text(_names(_kinds_of(rings[0]["stages"][0]), rings, 0, found, lanes))
    for index in range(1, len(rings[0]["stages"])):
        for number, worker_kind in enumerate(_kinds_of(rings[0]["stages"][index])):
            if number:
                row.append(",")
            row.append_text(_fill(_fullest(rings, index, worker_kind), glyphs, width))
            row.append_text(_names([worker_kind], rings, index, found, lanes))
    return row


def _kinds_of(stage: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.partition("-")[0] for name in stage["depth"]))


def _names(
    kinds: Sequence[str], rings: Sequence[dict[str, Any]], stage: int, found: Mapping[str, Verdict], lanes: int
) -> Text:
    """The workers of a stage: by name where there is one, else by kind and number; those in trouble in words."""
    text = Text()
    for kind in kinds:
        names = {name for ring in rings for name in ring["stages"][stage]["depth"] if name.partition("-")[0] == kind}
        troubled = sorted(name for name in names if found[name].is_trouble)
        if lanes == 1:
            name = next(iter(names), kind)
            text.append(name, style="bold red" if troubled else "cyan")
            if troubled:
                text.append(f" {found[name].word}", style="bold red")
        else:
            text.append(f"{lanes} {kind}", style="bold red" if troubled else "cyan")
            if troubled:
                text.append(f" ({len(troubled)} {found[troubled[0]].word})", style="bold red")
    return text


def _fullest(rings: Sequence[dict[str, Any]], stage: int, kind: str) -> float:
    return max(
        (
            depth / ring["capacity"]
            for ring in rings
            for name, depth in ring["stages"][stage]["depth"].items()
            if name.partition("-")[0] == kind
        ),
        default=0.0,
    )


def _fill(part: float, glyphs: Glyphs, width: int) -> Text:
    columns = BAR_WIDE if width > NARROW else BAR_NARROW
    whole = min(columns, -int(-part * columns // 1))
    style = "red" if part >= FULL else "yellow" if part >= HALF_FULL else "green"
    text = Text(f" {glyphs.line}[", style="not bold")
    text.append(glyphs.full * whole, style=style)
    text.append(glyphs.empty * (columns - whole), style="dim")
    text.append(f"]{100 * part:4.0f}% {glyphs.line}{glyphs.arrow} ")
    return text
