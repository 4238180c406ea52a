"""The table that `peers` prints, and the notes below it."""

from __future__ import annotations

import time
from typing import Any

from pipeline.cli.moments import show_left, show_moment

PEER_COLUMNS = ("name", "state", "addresses", "endpoint", "connections", "received", "sent", "since")


def render(peers: list[dict[str, Any]], in_full: bool = False) -> str:
    """A table of the peers, and notes below it; `in_full`: with what each may reach.

    Names may come from unauthenticated clients, notes from a disk.
    """
    from pipeline.cli import datagram_text
    from pipeline.cli.status_text import duration
    from pipeline.log import printable
    from pipeline.observe.sentence import amount
    from pipeline.plain_text import escaped_lines

    if not peers:
        return "no peer"
    has_quotas = any(peer.get("quota_bytes") for peer in peers)
    has_datagrams = any(peer.get("datagrams") for peer in peers)
    rows: list[tuple[str, ...]] = [
        PEER_COLUMNS + ("carrier",) * has_datagrams + ("quota",) * has_quotas,
        *(
            (
                printable(peer["name"]),
                peer["state"],
                ", ".join(peer["addresses"]) or "-",
                peer["endpoint"] or "-",
                str(peer["connections"]),
                amount(peer["received_bytes"]),
                amount(peer["sent_bytes"]),
                "-" if peer["session_seconds"] is None else f"{duration(peer['session_seconds'])} ago",
                *((peer.get("carrier") or "-",) if has_datagrams else ()),
                *((_quota(peer),) if has_quotas else ()),
            )
            for peer in peers
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{printable(peer['name'])}: {note}" for peer in peers for note in _notes_on_peer(peer, time.time())]
    notes += [f"{printable(peer['name'])}: {note}" for peer in peers for note in _reach(peer, in_full)]
    notes += [f"{printable(peer['name'])}: {why}" for peer in peers if (why := datagram_text.note(peer))]
    return escaped_lines("\n".join(table + notes))


def _notes_on_peer(peer: dict[str, Any], now: float) -> list[str]:
    """An instance of an older version says nothing of the life of a peer."""
    notes = [peer["problem"]] if peer.get("problem") else []
    if peer.get("invitation") == "open":
        uses, expires = peer["invitation_uses_left"], peer["invitation_expires"]
        machines = f" for {uses} machines" if uses > 1 else ""
        how_long = f"is good for {show_left(expires - now)}" if expires else "never expires"
        notes.append(f"its invitation{machines} {how_long}")
    if peer.get("until"):
        notes.append(f"{'ended' if peer['until'] <= now else 'ends'} on {show_moment(peer['until'])}")
    return notes


def _reach(peer: dict[str, Any], in_full: bool) -> list[str]:
    """The targets of a peer, and how much was refused; an instance of an older version has no rules."""
    targets, refused = peer.get("may_reach"), peer.get("refused_packets")
    notes = []
    if in_full and "may_reach" in peer:
        more = peer["may_reach_count"] - len(targets or ())
        named = ", ".join(targets or ()) + (f" and {more} more" if more else "")
        groups = f" (groups: {', '.join(peer['groups'])})" if peer["groups"] else ""
        notes.append(f"may reach {'everything' if targets is None else named or 'nothing'}{groups}")
    if refused:
        notes.append(
            f"{refused} packet{'s' * (refused != 1)} refused, that its rules do not allow: `events` names them"
        )
    return notes


def _quota(peer: dict[str, Any]) -> str:
    """How much is used of how much, and the consequence; an instance of an older version has no quotas."""
    from pipeline.observe.sentence import amount

    if not peer.get("quota_bytes"):
        return "-"
    used = f"{amount(peer['quota_used_bytes'])} of {amount(peer['quota_bytes'])}"
    return used if peer["quota_state"] == "open" else f"{used}, {peer['quota_state']}"
