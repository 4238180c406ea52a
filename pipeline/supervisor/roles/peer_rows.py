"""The rows of a server's peers, for observers and for the command `peers`: sessions, files, time, invitations.

The admission knows of sessions (pipeline.peers.admission). Here what the files of peers say is added.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from pipeline.packet.route_table import NO_PEER
from pipeline.peers.invitation_life import EXPIRED, OPEN
from pipeline.peers.peer_file import InvitedPeer
from pipeline.peers.peer_status import PeerRow
from pipeline.supervisor.roles.server_peers import ServerPeers


def connected_first(rows: Iterable[PeerRow]) -> list[PeerRow]:
    """Those with a session first, then by name."""
    return sorted(rows, key=lambda row: (row.peer == NO_PEER, row.name))


def complete_rows(rows: Iterable[PeerRow], peers: ServerPeers) -> list[PeerRow]:
    """The rows of an admission by name, with what the peers' files say and what is wrong with them."""
    found = {row.name: row for row in rows}
    now = time.time()
    for known in peers.known.known:
        if known.invited and (row := found.get(known.policy.name)):
            found[row.name] = _with_life(row, known.invited, peers, now)
    for name in peers.reasons.keys() & found.keys():
        state = "disabled" if name in peers.shut_out.disabled else "ended"
        found[name] = found[name]._replace(state=state)
    for name, problem in peers.known.broken:
        found[name] = found.get(name, PeerRow(name, state="broken"))._replace(problem=str(problem))
    return [found[name] for name in sorted(found)]


def _with_life(row: PeerRow, invited: InvitedPeer, peers: ServerPeers, now: float) -> PeerRow:
    """The row of a peer with what its file says of its time and of its invitation."""
    enrollment = peers.enrollment
    state = enrollment.state_of(invited, now)
    row = row._replace(until=invited.until, invitation=state)
    if invited.invitation is not None and state == OPEN:
        row = row._replace(
            invitation_expires=invited.invitation.expires,
            invitation_uses_left=enrollment.uses_left(invited.invitation),
        )
    if not enrollment.has_joined(invited):
        row = row._replace(state="expired" if state == EXPIRED else "invited")
    return row
