"""The words of `status` and `peers` about the carrier of blocks.

There are none where `carrier` is "tcp", and of an older instance.

brief(peers)      a line: of one peer all that there is to say, of several how many use datagrams, and why others do not
rows(peers)       a table with a row for each peer, its head first; [] where there is nothing to say
note(peer)        of one peer, why its blocks do not travel in datagrams; "" if they do
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.log import printable
from pipeline.observe.sentence import spoken
from pipeline.policy.carrier_order import NAMES, Kind

SHOWN = 3  # peers that use no datagrams, with the reasons

HEAD = ["peer", "carrier", "since", "to", "rtt", "lost", "rows", "pace", "segments", "why"]
OTHERWISE = {"tcp": "blocks go by TCP", "none": "blocks go nowhere, since `carrier` names datagrams alone"}
CALLED = {"udp": "datagrams", "faketcp": "datagrams by fake TCP"}

Peer = dict[str, Any]


def brief(peers: Sequence[Peer]) -> list[str]:
    found = [peer for peer in peers if peer.get("datagrams")]
    if not found:
        return []
    if len(peers) == 1:
        return [_sentence(found[0])]
    users = sum(peer["carrier"] in NAMES for peer in found)
    others = [peer for peer in found if peer["carrier"] not in NAMES]
    named = "; ".join(f"{printable(peer['name'])}: {note(peer)}" for peer in others[:SHOWN])
    more = f"; and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return [f"datagrams: {users} of {len(found)} peers" + (f" ({named}{more})" if others else "")]


def note(peer: Peer) -> str:
    about = peer.get("datagrams")
    if not about or peer["carrier"] in NAMES:
        return ""
    return f"{OTHERWISE[peer['carrier']]}, {_state(peer)}: {about['reason']}"


def rows(peers: Sequence[Peer]) -> list[list[str]]:
    found = [peer for peer in peers if peer.get("datagrams")]
    return [HEAD, *(_row(peer, peer["datagrams"]) for peer in found)] if found else []


def _sentence(peer: Peer) -> str:
    about = peer["datagrams"]
    if peer["carrier"] not in NAMES:
        return note(peer)
    figures = [_rtt(about), f"{_lost(about)} lost", f"rows {_cut(about)}", f"at {_pace(about)}", f"of {_size(about)}"]
    why = f" ({about['reason']})" if peer["carrier"] == Kind.FAKE_TCP else ""
    return f"{_state(peer)} to {about['endpoint']}{why}: {', '.join(figures)}"


def _row(peer: Peer, about: dict[str, Any]) -> list[str]:
    is_used = peer["carrier"] in NAMES
    return [
        printable(peer["name"]),
        peer["carrier"],
        "-" if about["state_seconds"] is None else spoken(about["state_seconds"]),
        about["endpoint"] or "-",
        *([_rtt(about), _lost(about), _cut(about), _pace(about), _size(about)] if is_used else ["-"] * 5),
        about["reason"],
    ]


def _state(peer: Peer) -> str:
    about = peer["datagrams"]
    if about["state_seconds"] is None:
        return "no datagrams"
    words = {
        "probing": "no path for datagrams yet",
        "open": CALLED.get(peer["carrier"], "datagrams"),
        "dark": "no datagram passes",
    }
    return f"{words.get(about['state'], about['state'])} since {spoken(about['state_seconds'])}"


def _rtt(about: dict[str, Any]) -> str:
    return "-" if about["rtt_ms"] is None else f"{about['rtt_ms']:.1f} ms"


def _lost(about: dict[str, Any]) -> str:
    sent = about["sent_segments"]
    return f"{100 * about['lost_segments'] / sent:.2f} %" if sent else "-"


def _cut(about: dict[str, Any]) -> str:
    return f"{about['data_rows']} + {about['parity_rows']}" if about["data_rows"] else "-"


def _pace(about: dict[str, Any]) -> str:
    rate = about["rate_mbit"]
    return f"{rate:.0f} Mbit/s" if rate >= 100 else f"{rate:.3g} Mbit/s"


def _size(about: dict[str, Any]) -> str:
    return f"{about['segment_bytes']} bytes"
