"""A snapshot as text for people.

brief(...)     a sentence, what is wrong or in doubt, and the peers or connections, a few lines each
verbose(...)   besides: workers, rings, all connections, and the counters that are not zero
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.cli import datagram_text, direct_text
from pipeline.log import printable
from pipeline.observe.sentence import amount, describe, established, peers_of, spoken
from pipeline.peers.peer_status import IN_TLS, NOT_ENCRYPTED
from pipeline.shm.peer_table import ARRIVED_CLASSES, CLASSES

NOTES_MAX = 5
ROWS_MAX = 8  # of peers or connections in the brief text

HEAD = ["connection", "worker", "class", "state", "sent", "received", "rtt", "congestion", "last received"]
UPLINK_HEAD = ["uplink", "role", "connections", "carries", "rtt", "resent", "sent", "received", "trouble"]
REFUSED_SHOWN = 3  # peers, with the packets that their rules have refused
SEE_MORE = "status --verbose has them all"


def brief(snapshot: dict[str, Any], notes: Sequence[str] = ()) -> str:
    """`notes`: besides those of the instance."""
    connected = [peer for peer in peers_of(snapshot) or () if peer.get("state") == "connected"]
    rows = _peer_rows(connected) if connected else _connection_rows(snapshot, established(snapshot))
    more = len(rows) - 1 - ROWS_MAX
    return "\n".join(
        [
            *_head(snapshot, notes),
            *_fec(snapshot.get("fec", {"mode": "off"})),
            *_encryption(snapshot),
            *datagram_text.brief(_connected(snapshot)),
            *direct_text.brief(snapshot),
            *_reach(snapshot),
            *_full_tunnel(snapshot.get("full_tunnel") or {}),
            *_uplinks(snapshot),
            *([""] if len(rows) > 1 else []),
            *(_table(rows[: 1 + ROWS_MAX]) if len(rows) > 1 else []),
            *([f"{more} more: {SEE_MORE}"] if more > 0 else []),
        ]
    )


def _connected(snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    """The peers of a server that are connected, or the server of a client that is."""
    return [peer for peer in snapshot.get("peers", ()) if peer.get("connections")]


def _head(snapshot: dict[str, Any], notes: Sequence[str]) -> list[str]:
    health = describe(snapshot)
    return [
        f"{snapshot['name']}: {health.sentence}",
        *([health.advice] if health.advice else []),
        *_failures(snapshot.get("supervisor_failures", 0)),
        *_notes([*notes, *snapshot.get("notes", [])]),
    ]


def _reach(snapshot: dict[str, Any]) -> list[str]:
    """How many peers have rules, and what these have refused; an older instance has none."""
    peers = peers_of(snapshot) or ()
    limited = sum(peer.get("may_reach") is not None for peer in peers)
    refused = {printable(peer["name"]): peer["refused_packets"] for peer in peers if peer.get("refused_packets")}
    if not limited:
        return []
    most = sorted(refused, key=lambda name: -refused[name])[:REFUSED_SHOWN]
    by = ", ".join(f"{name} {refused[name]}" for name in most)
    return [f"may_reach limits {limited} peers; refused packets: {sum(refused.values())}" + (f" ({by})" if by else "")]


def _full_tunnel(found: dict[str, Any]) -> list[str]:
    if not found.get("on"):
        return []
    shut = "the kill switch is shut" if found["kill_switch"] else "without a kill switch"
    return [f"full tunnel: {shut}; {_dns(found)}"]


def _dns(found: dict[str, Any]) -> str:
    if found["dns"]:
        return f"DNS servers {', '.join(found['dns'])}"
    return (
        "DNS as the LAN has it" if found.get("lan_dns", True) else "no DNS server is set, and none in the LAN is asked"
    )


def _uplinks(snapshot: dict[str, Any]) -> list[str]:
    """Of a client with several, each; an older instance has none."""
    rows = [
        [
            each["interface"],
            each["role"],
            f"{each['connections']} of {each['connections_wanted']}",
            "yes" if each.get("carries") else "no",
            f"{each['rtt_ms']:.1f} ms" if each["rtt_ms"] else "-",
            f"{100 * each['resent_segments'] / each['sent_segments']:.1f} %" if each["sent_segments"] else "-",
            amount(each["sent_bytes"]),
            amount(each["received_bytes"]),
            "; ".join(each["trouble"]) or "-",
        ]
        for each in (snapshot.get("server") or {}).get("uplinks", ())
    ]
    return ["", *_table([UPLINK_HEAD, *rows])] if rows else []


def _peer_rows(peers: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A name may come from an unauthenticated client: it is escaped."""
    return [
        ["peer", "address", "from", "since", "in", "out"],
        *(
            [
                printable(peer["name"]),
                ", ".join(peer["addresses"]) or "-",
                peer["endpoint"] or "-",
                "-" if peer["session_seconds"] is None else spoken(peer["session_seconds"]),
                amount(peer["received_bytes"]),
                amount(peer["sent_bytes"]),
            ]
            for peer in peers
        ),
    ]


def _connection_rows(snapshot: dict[str, Any], connections: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of a client with several uplinks, each with its uplink in the first column."""
    names = [each["interface"] for each in (snapshot.get("server") or {}).get("uplinks", ())]
    rows = [HEAD] + [
        [
            c["address"],
            c["worker"],
            c["traffic_class"],
            c["state"],
            amount(c["sent_bytes"]),
            amount(c["received_bytes"]),
            f"{c['rtt_ms']:.2f} ms",
            c.get("congestion") or "-",
            f"{c['last_received_ms_ago'] / 1000:.1f} s ago",
        ]
        for c in connections
    ]
    if not names:
        return rows
    uplinks = ["uplink", *("-" if c["uplink"] is None else names[c["uplink"]] for c in connections)]
    return [[uplink, *row] for uplink, row in zip(uplinks, rows, strict=True)]


def verbose(snapshot: dict[str, Any], notes: Sequence[str] = ()) -> str:
    """All that `brief` says, and the inside of the instance."""
    lines = [
        *_head(snapshot, notes),
        (
            f"{snapshot['mode']}  {snapshot['state']}  up {duration(snapshot['uptime_seconds'])}  "
            f"device {snapshot['tun_name']}  pid {snapshot['pid']}  version {snapshot.get('version', 'unknown')}"
        ),
        "",
        *_table(
            [
                ["worker", "state", "pid", "restarts", "heartbeat", "cpu", "memory", "cores", "ran on"],
                *(
                    [
                        w["name"],
                        w["state"],
                        str(w["pid"] or "-"),
                        str(w["restarts"]),
                        "-" if w["heartbeat_age_ms"] is None else f"{w['heartbeat_age_ms']:.0f} ms ago",
                        f"{w['cpu_percent']:.0f} %",
                        amount(w["rss_bytes"]),
                        ",".join(map(str, w["cores"])) or "any",
                        "-" if w.get("core") is None else str(w["core"]),
                    ]
                    for w in snapshot["workers"]
                ),
            ]
        ),
        *_spares(snapshot),
        *(f"cores: {reason}" for reason in snapshot.get("placement", ())),
        *_lanes(snapshot.get("lanes", ())),
        "",
        *_table(
            [
                ["ring", "capacity", "waiting"],
                *(
                    [
                        r["name"],
                        str(r["capacity"]),
                        "  ".join(
                            f"{worker} {depth}" for stage in r["stages"][1:] for worker, depth in stage["depth"].items()
                        ),
                    ]
                    for r in snapshot["rings"]
                ),
            ]
        ),
        "",
        *_fec(snapshot["fec"]),
        *_encryption(snapshot),
        *_uplinks(snapshot),
    ]
    if peers := peers_of(snapshot):
        ciphers = ["encryption", *map(_cipher, peers)]
        rows = [[*row, cipher] for row, cipher in zip(_peer_rows(peers), ciphers, strict=True)]
        lines += ["", *_table(rows)]
    if carriers := datagram_text.rows(_connected(snapshot)):
        lines += ["", *_table(carriers)]
    lines += _classes(snapshot.get("peers", ()))
    if snapshot["connections"]:
        lines += ["", *_table(_connection_rows(snapshot, snapshot["connections"]))]
    else:
        lines.append("no connection")
    counted = [[name, str(value)] for name, value in snapshot["counters"].items() if value]
    if counted:
        lines += ["", *_table([["counter", "value"], *counted])]
    return "\n".join(lines)


def _lanes(lanes: Sequence[dict[str, Any]]) -> list[str]:
    """How flows and packets are spread, where there are several lanes."""
    if len(lanes) < 2:
        return []
    sent, received = (sum(each[f"{way}_bytes"] for each in lanes) for way in ("sent", "received"))
    rows = [
        [
            str(each["lane"]),
            ",".join(map(str, each["cores"])) or "any",
            str(each["flows"]),
            _part(each["sent_bytes"], sent),
            _part(each["received_bytes"], received),
        ]
        for each in lanes
    ]
    return ["", *_table([["lane", "cores", "flows", "from TUN", "to TUN"], *rows])]


def _part(size: int, whole: int) -> str:
    return f"{amount(size)} ({100 * size // whole if whole else 0} %)"


def _spares(snapshot: dict[str, Any]) -> list[str]:
    spares = [f"{s['kind']} {s['state']}, {amount(s['rss_bytes'])}" for s in snapshot["spares"]]
    left = snapshot["rolling"]["left"]
    return [
        f"spares: {'; '.join(spares) or 'none'}",
        *([f"rolling restart: still to be replaced: {', '.join(left)}"] if left else []),
    ]


def _failures(count: int) -> list[str]:
    return (
        [f"the supervisor has survived {count} failure(s) of its own: the log has a traceback of each"] if count else []
    )


def _notes(notes: list[str]) -> list[str]:
    """All that is wrong or in doubt, a line each; of many the first ones."""
    more = len(notes) - NOTES_MAX
    return [
        *(f"note: {note}" for note in notes[:NOTES_MAX]),
        *([f"note: {more} more: status --json has them all"] if more > 0 else []),
    ]


def _fec(fec: dict[str, Any]) -> list[str]:
    if fec["mode"] == "off":
        return []
    now = f"{fec['data']} + {fec['parity']} shards a block" if fec["parity"] else "no parity"
    limit = f"(at most {fec['data']} + {fec['parity_max']})"
    why = "" if fec["peer_accepts_shards"] else ": the other end accepts no shards, or is not connected"
    return [f"fec {fec['mode']}, now {now} {limit}{_copies(fec)}{why}"]


def _copies(fec: dict[str, Any]) -> str:
    """Those that losses call for. An older supervisor says nothing of them."""
    copies, spacing = fec.get("copies", 0), fec.get("spacing_ms", 0)
    if not copies:
        return ""
    return f", light packets {1 + copies} times" + (f", {spacing:.1f} ms apart" if spacing else "")


def _encryption(snapshot: dict[str, Any]) -> list[str]:
    """How packets travel now. An instance of an older version does not say."""
    peers = [peer for peer in snapshot.get("peers", ()) if peer.get("encryption")]
    if not peers:
        return []
    counts = Counter(peer["encryption"] for peer in peers)
    if NOT_ENCRYPTED in counts:
        return ["not encrypted"]
    if len(peers) == 1:
        return [f"encrypted with {_cipher(peers[0])}"]
    parts = [f"{name} ({count} peer{'s' * (count > 1)})" for name, count in counts.most_common()]
    return [f"encrypted with {', '.join(parts)}"]


def _classes(peers: Sequence[dict[str, Any]]) -> list[str]:
    """The bytes for each peer and from it, by class. An instance of an older version does not count all of them."""
    tables = (
        ("to peer, by class", "class_bytes", CLASSES),
        ("from peer, by class", "received_class_bytes", ARRIVED_CLASSES),
        ("peers to peer, by class", "transit_class_bytes", ARRIVED_CLASSES),
    )
    return [line for title, key, classes in tables for line in _by_class(peers, title, key, classes)]


def _by_class(peers: Sequence[dict[str, Any]], title: str, key: str, classes: Sequence[str]) -> list[str]:
    counted = [(peer["name"], peer[key]) for peer in peers if any(peer.get(key, {}).values())]
    if not counted:
        return []
    head = [title, *(name.replace("_", ", ") for name in classes)]
    return [
        "",
        *_table(
            [head, *([printable(name), *(amount(found.get(each, 0)) for each in classes)] for name, found in counted)]
        ),
    ]


def _cipher(peer: dict[str, Any]) -> str:
    name: str = peer.get("encryption", "") or "-"
    if name in ("-", NOT_ENCRYPTED, IN_TLS):
        return name
    return f"{name}, epoch {peer['sent_epoch']} out, {peer['received_epoch']} in"


def duration(seconds: float) -> str:
    """Seconds as 12s, 3m04s, 5h06m or 7d08h."""
    whole = int(seconds)
    for big, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= big:
            return f"{whole // big}{names[0]}{whole % big // small:02d}{names[1]}"
    return f"{whole}s"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
