"""The tables of `top`: workers, peers, the connections of one peer, drops, events. Pure.

Each function gives the head and all rows; the frame takes as many as there is room for. Every text that may come from
elsewhere is escaped, and none is read as markup.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

from pipeline.cli import datagram_text
from pipeline.cli.status_text import duration
from pipeline.cli.top.picture import Glyphs, verdicts
from pipeline.observe.rates import PeerRates, Rates
from pipeline.observe.sentence import SHARE_FROM, amount
from pipeline.plain_text import escaped

NAME_WIDTH = 24  # of a peer, at most
NAME_WIDTH_LEAST = 8
PEER_COLUMNS = 64  # of all else in its row
WITH_PID = 79  # columns of a terminal that has room for the pids of workers

LEVEL_STYLES = {"warning": "yellow", "error": "red"}

TRAFFIC = {
    "tun": ("tun.bytes_read", "tun.bytes_written", ("tun.packets_read", "tun.packets_written")),
    "fec": ("fec.bytes_coded", "", ("fec.runs_received",)),
    "tcp": ("tcp.bytes_sent", "tcp.bytes_received", ("tcp.frames_sent", "tcp.frames_received")),
    "dgram": ("dgram.bytes_sent", "dgram.bytes_received", ("dgram.segments_sent", "dgram.segments_received")),
}
"""Of each kind of worker: the counters of bytes out and in, and those whose sum is packets, runs and the like."""

WANTED = ("dropped_", "closed_")
ALSO = ("fec.blocks_expired", "tcp.connections_timed_out", "tcp.dials_failed", "tcp.accepts_failed")
"""Counters of packets, blocks and connections that were lost, refused or given up."""


class Table(NamedTuple):
    """A head and rows, all as wide as they are."""

    head: Text
    rows: list[Text]


class Column(NamedTuple):
    title: str
    width: int
    right: bool = True


def bits(rate: float) -> str:
    """Bytes a second as bits a second, in five characters and a unit."""
    value = 8 * rate
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if value < 999.5 or unit == "Gbit/s":
            return f"{value:.0f} {unit}" if value >= 99.5 or not value else f"{value:.1f} {unit}"
        value /= 1000
    return ""


def count(value: float) -> str:
    """A number in five characters."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            return f"{value:.0f}{unit}" if value >= 99.5 or not unit else f"{value:.1f}{unit}"
        value /= 1000
    return ""


def workers(snapshot: Mapping[str, Any], rates: Rates, glyphs: Glyphs, width: int) -> Table:
    """Those in trouble first, then in start order."""
    columns = [
        Column("worker", 7, False),
        Column("state", 9, False),
        *([Column("pid", 7)] if width >= WITH_PID else []),
        Column("core", 4),
        Column("cpu", 5),
        Column("memory", 8),
        Column(f"{glyphs.up} bit/s", 8),
        Column(f"{glyphs.down} bit/s", 8),
        Column("pkts/s", 6),
        Column("starts", 6),
    ]
    found = verdicts(snapshot)
    rows = []
    for worker in sorted(snapshot["workers"], key=lambda each: not found[each["name"]].is_trouble):
        out, into, packets = TRAFFIC.get(worker["kind"], ("", "", ()))
        name, rate = worker["name"], rates.workers.get(worker["name"], {})
        rows.append(
            _row(
                columns,
                [
                    Text(name, style="cyan"),
                    Text(*found[name]),
                    *([str(worker["pid"] or "-")] if width >= WITH_PID else []),
                    "-" if worker["core"] is None else str(worker["core"]),
                    f"{worker['cpu_percent']:.0f}%",
                    amount(worker["rss_bytes"]),
                    count(8 * rate.get(out, 0)),
                    count(8 * rate.get(into, 0)) if into else "-",
                    count(sum(rate.get(each, 0) for each in packets)),
                    Text(f"{1 + worker['restarts']}", style="yellow" if worker["restarts"] else ""),
                ],
            )
        )
    return Table(_head(columns), rows)


def peers(
    ordered: Sequence[Mapping[str, Any]], rates: Rates, selected: str, glyphs: Glyphs, columns_wide: int
) -> Table:
    """In the order given."""
    most = min(NAME_WIDTH, max(NAME_WIDTH_LEAST, columns_wide - PEER_COLUMNS))
    width = max([4, *(min(most, Text(escaped(peer["name"])).cell_len) for peer in ordered)])
    columns = (
        Column("peer", width + 1, False),
        Column("conns", 5),
        Column("rtt", 8),
        Column(f"{glyphs.up} bit/s", 8),
        Column(f"{glyphs.down} bit/s", 8),
        Column("resent", 8),
        Column("fec", 5),
        Column("recov", 5),
        Column("drops", 5),
    )
    rows = []
    for peer in ordered:
        rate = rates.peers.get(peer["name"], PeerRates())
        is_up = bool(peer["connections"])
        name = Text(">" if peer["name"] == selected else " ")
        name.append(escaped(peer["name"]), style="bold" if is_up else "dim")
        row = _row(
            columns,
            [
                name,
                str(peer["connections"]),
                _rtt(peer) if is_up else Text(peer["state"], style="dim"),
                count(8 * rate.sent) if is_up else "-",
                count(8 * rate.received) if is_up else "-",
                _resent(peer, rate) if is_up else "-",
                f"{peer['fec_data']}+{peer['fec_parity']}" if is_up and peer["fec_data"] else "-",
                count(peer["recovered_blocks"]),
                Text(count(peer["dropped"]), style="yellow" if peer["dropped"] else ""),
            ],
        )
        if peer["name"] == selected:
            row.stylize("reverse")
        rows.append(row)
    return Table(_head(columns), rows)


def _rtt(peer: Mapping[str, Any]) -> str:
    return "-" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms"


def _limits(peer: Mapping[str, Any]) -> str:
    """An instance of an older version says nothing of a limit of bulk."""
    limits = ("rate_mbit", ""), ("bulk_rate_mbit", " of the class bulk")
    return ", ".join(f"{peer[name]:g} Mbit/s{what}" for name, what in limits if peer.get(name))


def _resent(peer: Mapping[str, Any], rate: PeerRates) -> Text:
    """Segments that the kernel sends again, a second; without any now, their share since the connections began.

    Of few segments it is their number.
    """
    if rate.resent >= 0.5:
        return Text(f"{count(rate.resent)}/s", style="yellow")
    if not peer["resent_segments"] or peer["sent_segments"] < SHARE_FROM:
        return Text(count(peer["resent_segments"]))
    return Text(f"{100 * peer['resent_segments'] / peer['sent_segments']:.2f}%")


def peer_details(snapshot: Mapping[str, Any], peer: Mapping[str, Any], rates: Rates, glyphs: Glyphs) -> list[Text]:
    """Everything about one peer, and a row for each of its connections."""
    rate = rates.peers.get(peer["name"], PeerRates())
    since = "" if peer["session_seconds"] is None else f" since {duration(peer['session_seconds'])}"
    facts = [
        ("state", f"{peer['state']}{since}"),
        ("from", peer["endpoint"]),
        ("addresses", ", ".join(peer["addresses"])),
        ("networks", ", ".join(peer["allowed"])),
        ("limit", _limits(peer)),
        ("sent", f"{amount(peer['sent_bytes'])}, now {bits(rate.sent)}"),
        ("received", f"{amount(peer['received_bytes'])}, now {bits(rate.received)}"),
        ("by class", _classes(peer.get("class_bytes") or {})),
        ("from it", _classes(peer.get("received_class_bytes") or {})),
        ("transit", _classes(peer.get("transit_class_bytes") or {})),
        ("segments", f"{peer['sent_segments']} sent, {peer['resent_segments']} of them again"),
        (
            "blocks",
            f"{peer['recovered_blocks']} recovered, {peer['expired_blocks']} given up, {peer['dropped']} dropped",
        ),
        ("program", peer.get("version", "")),
        ("encryption", peer.get("encryption", "")),
        ("carrier", _carrier(peer)),
        ("problem", peer["problem"]),
    ]
    lines = [Text.assemble(("peer ", "bold"), (escaped(peer["name"]), "bold cyan"))]
    lines += [Text.assemble((f" {title:<10}", "dim"), escaped(text)) for title, text in facts if text]
    return [*lines, *_connections(snapshot, peer["peer"], glyphs)]


def _carrier(peer: Mapping[str, Any]) -> str:
    """ "" where there can be no datagrams, as in an instance of an older version."""
    return "; ".join(datagram_text.brief([dict(peer)]))


def _classes(counted: Mapping[str, int]) -> str:
    """Bytes by class; "" for none. An instance of an older version counts fewer."""
    return ", ".join(f"{name.replace('_', ' ')} {amount(count)}" for name, count in counted.items() if count)


def _connections(snapshot: Mapping[str, Any], peer: int, glyphs: Glyphs) -> list[Text]:
    columns = (
        Column("connection", 21, False),
        Column("worker", 7, False),
        Column("class", 5, False),
        Column("rtt", 8),
        Column("sent", 9),
        Column("received", 9),
        Column("resent", 7),
        Column("silent", 7),
    )
    own = [each for each in snapshot["connections"] if each["peer"] == peer and each["state"] == "established"]
    rows = [
        _row(
            columns,
            [
                escaped(each["address"]),
                each["worker"],
                each["traffic_class"],
                f"{each['rtt_ms']:.1f} ms",
                amount(each["sent_bytes"]),
                amount(each["received_bytes"]),
                str(each["resent_segments"]),
                f"{each['last_received_ms_ago'] / 1000:.1f} s",
            ],
        )
        for each in own
    ]
    return [_head(columns), *rows] if rows else []


def drops(snapshot: Mapping[str, Any], rates: Rates) -> list[Text]:
    """Reasons why something was lost, refused or given up: those that move now come first."""
    found = [
        (rates.counters.get(name, 0.0), value, name)
        for name, value in snapshot["counters"].items()
        if value and (name in ALSO or name.partition(".")[2].startswith(WANTED))
    ]
    texts = []
    for rate, value, name in sorted(found, key=lambda each: (-each[0], -each[1], each[2])):
        text = Text(f"{name} {count(value)}")
        if rate:
            text.append(f" +{count(rate)}/s", style="bold yellow")
        texts.append(text)
    return texts


def events(found: Iterable[Mapping[str, Any]]) -> list[Text]:
    """The latest first."""
    lines = []
    for event in reversed(list(found)):
        text = Text(time.strftime(" %H:%M:%S ", time.localtime(event["time"])), style="dim")
        text.append(escaped(event["line"]), style=LEVEL_STYLES.get(event["level"], ""))
        if event["more"]:
            text.append(f" ({event['more']} more)", style="dim")
        lines.append(text)
    return lines


# -- columns


def _head(columns: Sequence[Column]) -> Text:
    head = Text(" ").append_text(_cells(columns, [Text(column.title) for column in columns]))
    head.stylize("dim")
    return head


def _row(columns: Sequence[Column], cells: Sequence[str | Text]) -> Text:
    return Text(" ").append_text(_cells(columns, [each if isinstance(each, Text) else Text(each) for each in cells]))


def _cells(columns: Sequence[Column], cells: Sequence[Text]) -> Text:
    found = []
    for column, cell in zip(columns, cells, strict=True):
        cell.truncate(column.width, overflow="ellipsis")
        space = " " * (column.width - cell.cell_len)
        found.append(Text(space).append_text(cell) if column.right else cell.append(space))
    return Text(" ").join(found)
