"""One frame of `top`: everything in the rows and columns that there are. Pure.

    draw(snapshot, rates, state, glyphs, width, height)   -> at most `height` lines, none wider than `width`

A head line, what is wrong, the pipeline as it is wired, then the parts that may be long: workers, peers, events. Each
of these gets a few rows, and the chosen one gets the room that is left. A part that was cut says how many rows are
missing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

from pipeline.cli.status_text import duration
from pipeline.cli.top import tables
from pipeline.cli.top.picture import Glyphs, picture
from pipeline.cli.top.state import State, sorted_peers
from pipeline.counters import BYTES_RECEIVED, BYTES_SENT
from pipeline.observe.rates import Rates
from pipeline.plain_text import escaped

NOTICES_MAX = 2
LEAST = {"workers": 3, "peers": 2, "events": 3}
"""Rows that each part gets before the chosen one gets the rest."""

UNLIMITED = 1 << 20  # rows or columns, for text that goes to a file

HELP = """
 q         quit                        Tab      choose peers, workers or events:
 s         another order of the peers           they get the room that is left
 r         turn the order around       up down  choose a peer, or scroll
 f, space  freeze, and go on           Enter    all about the chosen peer
 h, ?      this help                   Esc      back

 The picture shows each kind of ring with its stages, and how full it is before
 each of them. With several lanes a row shows the fullest ring.

 resent    lost segments that the kernel has sent again: now a second, or their
           share, or of fewer than 200 segments their number
 fec       data and parity shards of a full block, as they are cut now
 recov     blocks that were recovered with parity, in this session
"""


class Part(NamedTuple):
    """A part that may be long. `name`: of the pane, if it can be chosen."""

    name: str
    head: list[Text]
    rows: list[Text]
    first: int  # the row that stands first if not all fit
    noun: str


def draw(
    snapshot: Mapping[str, Any], rates: Rates, state: State, glyphs: Glyphs, width: int, height: int
) -> list[Text]:
    """The whole frame."""
    foot = _foot(snapshot, state)
    if state.shows_help:
        return _fit([_head(snapshot, rates, glyphs, state), *map(Text, HELP.split("\n"))], [foot], width, height)
    top = [_head(snapshot, rates, glyphs, state), *_notices(snapshot), *_picture(snapshot, rates, glyphs, width)]
    ordered = sorted_peers(snapshot["peers"], rates, state)
    chosen = next((each for each in ordered if each["name"] == state.selected), None)
    if state.shows_peer and chosen is not None:
        return _fit([*top, *tables.peer_details(snapshot, chosen, rates, glyphs)], [foot], width, height)
    lost = _lost(snapshot, rates, width)
    parts = [_workers(snapshot, rates, state, glyphs, width), _peers(snapshot, ordered, rates, state, glyphs, width)]
    happened = _events(snapshot, state)
    room = _shares([*parts, happened], state.pane, height - len(top) - len(lost) - 1)
    body = [line for part in parts for line in _shown(part, room[part.name])]
    return _fit([*top, *body, *lost, *_shown(happened, room[happened.name])], [foot], width, height)


def waiting(name: str, reason: str, width: int, height: int) -> list[Text]:
    """The frame while there is nothing to show."""
    text = Text.assemble((f" {name} ", "bold reverse"), f"  {escaped(reason)}")
    return _fit([text, Text(), Text(" waiting until it runs; q quits", style="dim")], [], width, height)


# -- what stands above


def _head(snapshot: Mapping[str, Any], rates: Rates, glyphs: Glyphs, state: State) -> Text:
    good = snapshot["state"] == "running"
    line = Text.assemble(
        (f" {escaped(snapshot['name'])} ", "bold reverse"),
        f" {snapshot['mode']} ",
        (snapshot["state"], "green" if good else "bold red"),
        f"  up {duration(snapshot['uptime_seconds'])}  {snapshot['tun_name']}",
    )
    if snapshot["mode"] == "server":
        line.append(f"  {snapshot['peers_connected']} of {snapshot['peers_max']} peers")
    line.append(
        f"  {glyphs.up} {tables.bits(rates.of_all(BYTES_SENT))}"
        f"  {glyphs.down} {tables.bits(rates.of_all(BYTES_RECEIVED))}"
    )
    if state.is_frozen:
        line.append(" ")
        line.append(" FROZEN ", style="bold black on yellow")
    return line


def _notices(snapshot: Mapping[str, Any]) -> list[Text]:
    """Everything that is wrong, in a line each."""
    found = []
    supervisor = snapshot["supervisor"]
    if supervisor["state"] != "running":
        age = supervisor["heartbeat_age_ms"]
        silent = f", silent for {duration(age / 1000)}" if age is not None else ""
        found.append(
            f"the supervisor (pid {supervisor['pid']}) is {supervisor['state']}{silent}: packets pass, but no worker "
            "is started again and no command is answered"
        )
    server = snapshot["server"]
    if server is not None and (server["connections"] < server["connections_wanted"] or server["trouble"]):
        why = "; ".join(server["trouble"]) or "dialing"
        there, wanted = server["connections"], server["connections_wanted"]
        found.append(f"{there} of {wanted} connections to {server['host']}: {why}")
    if snapshot["rolling"]["left"]:
        found.append(f"rolling restart: still to be replaced: {', '.join(snapshot['rolling']['left'])}")
    found += snapshot["notes"]
    more = len(found) - NOTICES_MAX
    if more > 0:
        found = [*found[: NOTICES_MAX - 1], f"{found[NOTICES_MAX - 1]} (and {more} more: status)"]
    return [Text(f" ! {escaped(text)}", style="bold yellow") for text in found]


def _picture(snapshot: Mapping[str, Any], rates: Rates, glyphs: Glyphs, width: int) -> list[Text]:
    counters = rates.counters
    title = Text.assemble(
        (" pipeline ", "bold"),
        f" TUN {glyphs.up} {tables.count(counters.get('tun.packets_read', 0))} packets/s, "
        f"{tables.bits(counters.get('tun.bytes_read', 0))}"
        f"  {glyphs.down} {tables.count(counters.get('tun.packets_written', 0))} packets/s, "
        f"{tables.bits(counters.get('tun.bytes_written', 0))}",
    )
    return [title, *picture(snapshot, glyphs, width)]


def _lost(snapshot: Mapping[str, Any], rates: Rates, width: int) -> list[Text]:
    """One line with as many reasons as fit."""
    texts = tables.drops(snapshot, rates)
    line = Text(" drops  ", style="bold")
    if not texts:
        return [line.append("none", style="green not bold")]
    for number, text in enumerate(texts):
        rest = len(texts) - number
        if number and line.cell_len + text.cell_len + 2 + len(f"  and {rest - 1} more") > width:
            line.append(f"  and {rest} more", style="dim not bold")
            break
        line.append("  " if number else "", style="not bold")
        line.append_text(Text("", style="not bold").append_text(text))
    return [line]


# -- the parts that may be long


def _workers(snapshot: Mapping[str, Any], rates: Rates, state: State, glyphs: Glyphs, width: int) -> Part:
    table = tables.workers(snapshot, rates, glyphs, width)
    return Part("workers", [table.head], table.rows, state.offset if state.pane == "workers" else 0, "workers")


def _peers(
    snapshot: Mapping[str, Any],
    ordered: Sequence[dict[str, Any]],
    rates: Rates,
    state: State,
    glyphs: Glyphs,
    width: int,
) -> Part:
    table = tables.peers(ordered, rates, state.selected, glyphs, width)
    if snapshot["peers_left_out"]:
        table.rows.append(Text(f"  {snapshot['peers_left_out']} further peers are not shown", style="dim"))
    names = [each["name"] for each in ordered]
    place = names.index(state.selected) if state.selected in names else 0
    return Part("peers", [table.head], table.rows, place, "peers")


def _events(snapshot: Mapping[str, Any], state: State) -> Part:
    rows = tables.events(snapshot["events"])
    offset = state.offset if state.pane == "events" else 0
    return Part("events", [], rows or [Text(" no event yet", style="dim")], offset, "events")


def _shares(parts: Sequence[Part], pane: str, room: int) -> dict[str, int]:
    """Lines for each part, its head included. First the least for all, then the chosen one, then the others."""
    wanted = {part.name: len(part.head) + len(part.rows) for part in parts}
    given = {part.name: min(wanted[part.name], len(part.head) + LEAST[part.name]) if part.rows else 0 for part in parts}
    order = [pane, *(part.name for part in parts if part.name != pane)]
    over = sum(given.values()) - room
    for name in reversed(order):
        taken = max(0, min(over, given[name]))
        given[name] -= taken
        over -= taken
    left = max(0, room - sum(given.values()))
    for name in order:
        more = min(left, wanted[name] - given[name])
        given[name] += more
        left -= more
    return given


def _shown(part: Part, room: int) -> list[Text]:
    """So many lines of a part. The last one counts the rows that are missing."""
    if room <= 0:
        return []
    lines = part.head[:room]
    space = room - len(lines)
    if len(part.rows) <= space:
        return [*lines, *part.rows]
    if space <= 0:
        return lines
    first = max(0, min(part.first - (space - 2) // 2, len(part.rows) - (space - 1))) if space > 1 else 0
    shown = part.rows[first : first + space - 1]
    more = Text(f"  {len(part.rows) - len(shown)} more {part.noun}", style="dim")
    return [*lines, *shown, more]


def _foot(snapshot: Mapping[str, Any], state: State) -> Text:
    keys = f" q quit  h help  Tab {state.pane}  s by {state.sort}  f freeze  Enter peer "
    return Text.assemble((keys, "reverse"), (time.strftime("  %H:%M:%S"), "dim"))


def _fit(lines: Sequence[Text], foot: Sequence[Text], width: int, height: int) -> list[Text]:
    """Cut to what there is; the foot stands in the last line."""
    room = max(0, height - len(foot))
    body = list(lines[:room])
    if height < UNLIMITED:
        body += [Text() for _ in range(room - len(body))]
    found = [*body, *foot][:height]
    for line in found:
        line.truncate(max(0, width), overflow="ellipsis")
    return found
