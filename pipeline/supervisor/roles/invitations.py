"""Invitations of a server as commands make them and take them back. All or nothing: a peer and its file, or neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipeline.config.peer import check_peer_name
from pipeline.credentials import invitation
from pipeline.credentials.invitation import Invitation
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import LocalError
from pipeline.peers import peer_file, registry
from pipeline.peers.invitation_life import EXPIRED, OPEN
from pipeline.peers.peer_file import InvitedPeer, Issued
from pipeline.policy.targets import GROUP, parse_target
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.roles import public_address
from pipeline.supervisor.roles.server_peers import ServerPeers
from pipeline.transport.settings import ALPN, TlsMaterial

INVITATION_SECONDS = 7 * 86400  # how long an invitation is good for, unless it says something else

BROWSER_ALPN = ("h2", "http/1.1")
"""The names that browsers offer."""

Request = dict[str, Any]
Answer = dict[str, Any]


class Invitations:
    """`tls`: of the server now; None without encryption. `reaches`: a sentence about what a peer reaches.

    The fields of requests: `invite_command` of pipeline.cli.
    """

    def __init__(
        self,
        peers: ServerPeers,
        state: StateDir | None,
        tls: Callable[[], TlsMaterial | None],
        events: Events,
        reaches: Callable[[str], str],
    ) -> None:
        self._peers = peers
        self._reaches = reaches
        self._state = state
        self._tls = tls
        self._events = events

    def invite(self, request: Request) -> Answer:
        """A new peer, or another machine in the place of one. TunnelError says why not."""
        tls, peers, config = self._tls(), self._peers, self._peers.config
        if tls is None:
            raise LocalError('encryption is "none": a peer could not prove its identity')
        expires = request.get("expires")
        issued = peer_file.new_invitation(
            int(time.time()) + INVITATION_SECONDS if expires is None else expires, request.get("uses") or 1
        )
        peer = peer_file.new_peer(
            request.get("name"),
            request.get("allowed"),
            request.get("rate_mbit"),
            issued,
            request.get("until"),
            request.get("quota_gb"),
            request.get("groups"),
            request.get("may_reach"),
            request.get("bulk_rate_mbit"),
        )
        peers.enrollment.settle(peer.name)
        if problem := self._objection(peer, issued, again=bool(request.get("again"))):
            raise LocalError(problem)
        given = str(request.get("server") or "")
        address = public_address.find(given, config, self._state)
        line = invitation.encode(
            Invitation(
                address.server,
                issued.key,
                tls.fingerprint,
                peer.name,
                lasts=not config.tls_cert_file,
                alpn=() if ALPN in tls.alpn else BROWSER_ALPN,
                others=address.others,
            )
        )
        if before := peers.invited(peer.name):
            peers.save(self._invited_again(before, peer))
        else:
            known = registry.known_peer_of(peer, config)
            registry.check_distinct([*peers.known.known, known])
            peer_file.write(peers.directory, peer, replace=peers.known.is_excluded(peer.name))
            peers.known.add(known)
        peers.admit_as_known()
        self._events.record("invited", peer.name, f"to {', '.join((address.server, *address.others))}")
        return {
            "ok": True,
            "line": line,
            "server": address.server,
            "others": list(address.others),
            "file": str(peers.directory / peer_file.DIRECTORY / f"{peer.name}{peer_file.SUFFIX}"),
            "certificate": bool(config.tls_ca_file),
            "expires": issued.expires,
            "uses": issued.uses,
            "until": peer.until,
            "guessed": address.is_guessed,
            "is_private": address.is_private,
            "remembered": public_address.remember(given, config, self._state),
            "reaches": self._reaches(peer.name),
        }

    def withdraw(self, name: str) -> bool:
        """Take an invitation back. A machine that is the peer already stays. False: the peer is nothing else.

        LocalError if a machine has become the peer, and no other may.
        """
        self._peers.enrollment.settle(name)
        invited = self._peers.invited(name)
        if invited is None or not self._peers.enrollment.has_joined(invited):
            return False
        if self._peers.enrollment.state_of(invited, time.time()) not in (OPEN, EXPIRED):
            raise LocalError(f'peer "{name}" has joined, and has no invitation that is open')
        self._peers.save(invited._replace(invitation=None))
        self._peers.admit_as_known()
        return True

    def _objection(self, peer: InvitedPeer, issued: Issued, again: bool) -> str:
        """Why this peer cannot be invited so; "" if it can."""
        now = time.time()
        if 0 < peer.until <= now or 0 < issued.expires <= now:
            return "the time that is given is past"
        if unknown := sorted(self._groups_of(peer) - self._peers.config.groups.keys()):
            return f'no group "{unknown[0]}": the setting groups has {", ".join(self._peers.config.groups) or "none"}'
        if issued.uses > 1 and peer.allowed:
            return "an invitation for several machines cannot give them one network: invite each by itself"
        if issued.uses > 1:
            check_peer_name(f"{peer.name}-{issued.uses}0")  # some of the numbers may be taken
        before = self._peers.invited(peer.name)
        for name in self._peers.known.names():
            if name.lower() != peer.name.lower():
                continue
            if name != peer.name:
                return f'peer "{name}" exists already, too much like {peer.name}; revoke it, or choose another name'
            left = self._peers.enrollment.open_beside(name, now)
            if again and left is not None and left.name == name:
                return (
                    f'the invitation of "{name}" is still good for {left.uses_left} machines: end it first, with '
                    f"`revoke {name} --invitation`"
                )
            if before is not None and issued.uses == 1:
                if again or self._peers.enrollment.state_of(before, now) == EXPIRED:
                    continue
                return (
                    f'peer "{name}" exists already; revoke it, or choose another name, or invite another machine in '
                    "its place with --again"
                )
            return f'peer "{name}" exists already; revoke it, or choose another name'
        return ""

    @staticmethod
    def _groups_of(peer: InvitedPeer) -> set[str]:
        """The groups that a peer is in, and those that its targets name."""
        targets = map(parse_target, peer.may_reach or ())
        return {*peer.groups, *(target.name for target in targets if target.kind == GROUP)}

    def _invited_again(self, before: InvitedPeer, peer: InvitedPeer) -> InvitedPeer:
        """A peer with a new invitation. The machine that it is now stays connected until another one has joined."""
        return peer._replace(
            key=before.key if self._peers.enrollment.has_joined(before) else peer.key,
            allowed=peer.allowed or before.allowed,
            address=before.address,
            rate_mbit=before.rate_mbit if peer.rate_mbit is None else peer.rate_mbit,
            bulk_rate_mbit=before.bulk_rate_mbit if peer.bulk_rate_mbit is None else peer.bulk_rate_mbit,
            quota_gb=before.quota_gb if peer.quota_gb is None else peer.quota_gb,
            quota_action=before.quota_action,
            quota_rate_mbit=before.quota_rate_mbit,
            groups=peer.groups or before.groups,
            may_reach=before.may_reach if peer.may_reach is None else peer.may_reach,
            until=peer.until or before.until,
        )
