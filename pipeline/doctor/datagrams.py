"""Whether blocks travel in datagrams, where that is wanted, and if not, with which peers and why.

And whether TCP carries more than they do: the workers compare the two under load (pipeline.policy.bulk_carrier).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.log import printable
from pipeline.peers.peer_datagrams import BULK_BY_TCP
from pipeline.policy.carrier_order import NAMES, Kind

LISTED_MAX = 3
CURE = (
    "Let UDP pass on every firewall on the way, to the port that the server has for TCP. Where a network drops UDP, "
    'carrier "auto" goes by fake TCP, for which TCP to the fake_tcp_port of the server has to pass, or by connections.'
)
SLOW_CURE = (
    "A network on the way probably limits UDP. Nothing need be done: the connections carry the bulk, and the workers "
    "try datagrams again from time to time."
)


def datagrams(subject: Subject) -> list[Finding]:
    peers = (subject.snapshot or {}).get("peers", ())
    return judge([peer for peer in peers if peer.get("datagrams")])


def judge(peers: Sequence[dict[str, Any]]) -> list[Finding]:
    """`peers`: those that are connected, and with which datagrams could be used, as `status --json` has them."""
    return [*_passing(peers), *_slow(peers)] if peers else []


def _passing(peers: Sequence[dict[str, Any]]) -> list[Finding]:
    others = [peer for peer in peers if peer["carrier"] not in NAMES]
    if not others:
        behind = [peer for peer in peers if peer["carrier"] == Kind.FAKE_TCP]
        if not behind:
            return [ok("blocks travel in datagrams")]
        return [ok(f"blocks travel in datagrams, with {len(behind)} of {len(peers)} behind TCP headers")]
    reasons = [f"{printable(peer['name'])}: {peer['datagrams']['reason']}" for peer in others]
    text = f"no datagrams with {len(others)} of {len(peers)} ({_listed(reasons)})"
    if any(peer["carrier"] == "none" for peer in others):
        return [problem(f"{text}: carrier names datagrams alone, and nothing passes there", CURE)]
    if all(peer["datagrams"]["state"] == "off" for peer in others):
        return [ok(f"{text}: connections carry their blocks")]
    return [note(f"{text}: connections carry their blocks", CURE)]


def _slow(peers: Sequence[dict[str, Any]]) -> list[Finding]:
    """Where datagrams pass, and connections carry more."""
    slow = [printable(peer["name"]) for peer in peers if peer["datagrams"]["reason"] == BULK_BY_TCP]
    if not slow:
        return []
    text = (
        f"TCP carries more than datagrams with {len(slow)} of {len(peers)} ({_listed(slow)}): bulk goes by connections"
    )
    return [note(text, SLOW_CURE)]


def _listed(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - LISTED_MAX} more" if len(texts) > LISTED_MAX else ""
    return "; ".join(texts[:LISTED_MAX]) + more
