"""The life of an invitation, as the files of the peers have it: open, used, expired or kept.

An invitation for N machines makes the peers NAME, NAME-2, NAME-3, ... Its uses are counted in the files of the peers
that have joined with it (`agreed`). `peers`: all that were invited. Times: UNIX.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.peers.peer_file import InvitedPeer, Issued
from pipeline.wire import auth

OPEN, EXPIRED, USED, KEPT = "open", "expired", "used", "kept"


def joined_with(key: bytes, peers: Iterable[InvitedPeer]) -> list[InvitedPeer]:
    """The peers that have joined with the invitation of this key, and the first one, though its machine has left."""
    key_id = auth.key_id(key).hex()
    return [each for each in peers if each.agreed and each.agreed.invitation == key_id]


def uses_left(issued: Issued, peers: Iterable[InvitedPeer]) -> int:
    """The number of machines that may still join, if it has not expired."""
    return issued.uses - len(joined_with(issued.key, peers))


def is_expired(issued: Issued, now: float) -> bool:
    return issued.expired or 0 < issued.expires <= now


def state_of(invited: InvitedPeer, peers: Iterable[InvitedPeer], now: float) -> str:
    """Of the invitation in a peer's file: "" for none."""
    issued = invited.invitation
    if issued is None:
        return ""
    if issued.kept and invited.key == issued.key:
        return KEPT
    if uses_left(issued, peers) <= 0:
        return USED
    return EXPIRED if is_expired(issued, now) else OPEN
