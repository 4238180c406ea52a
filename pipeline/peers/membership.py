"""Who is a member of the hub: which peer has which index, and which session of it counts.

A peer that was admitted is a *member*. It stays one while it is away, until somebody else needs its index. Nothing here
hears that a connection has ended, so the end of an old one cannot throw out who has just come back: whoever asks for
admission brings `is_connected(index)`, which must say yes also for who was admitted a moment ago and is on the way.

    session      while an earlier one of the same peer is connected, a lower is SUPERSEDED, the same is one connection
                 more, a higher replaces it; otherwise any replaces it
    index        the peer's own; else one that nobody has; else that of the member not connected that was admitted least
                 recently; else FULL. None is given away before the last connection under it has ended
    addresses    see pipeline.peers.address_assignment
    routes       a peer's addresses and its allowed prefixes, while it is a member

A refusal changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_network
from itertools import chain
from typing import NamedTuple

from pipeline.packet.route_table import NOBODY, RouteTable
from pipeline.peers.address_assignment import AddressAssignment, PeerPolicy, Refusal
from pipeline.wire.messages import (
    ADDRESS_TAKEN,
    BUSY,
    FULL,
    REASONS,
    REVOKED,
    SUPERSEDED,
    Address,
    Interface,
)

SESSION_MAX = (1 << 64) - 2
ENDED = SESSION_MAX + 1  # later than every session: what connections there still are under this index are to end
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


class Admitted(NamedTuple):
    """The peer's index, and its addresses with the prefix lengths of their subnets."""

    peer: int
    addresses: tuple[Interface, ...]


class Member(NamedTuple):
    """A peer with its index; NOBODY in a listing, for one that is configured and has none."""

    peer: int
    identity: PeerPolicy
    session: int
    addresses: tuple[Address, ...]


class Membership:
    """The members of one server.

    sessions      by index: the session that counts, 0 before the first; connections of an earlier one are to end
    remembered    name -> addresses, least recently admitted first: what a server keeps over its restarts. Texts will
                  do to begin with
    """

    def __init__(
        self, interfaces: Sequence[Interface], capacity: int, remembered: Mapping[str, Iterable[str | Address]]
    ) -> None:
        self.sessions = [0] * capacity
        self._addresses = AddressAssignment(interfaces, remembered)
        self._configured: dict[str, PeerPolicy] = {}
        self._members: dict[str, Member] = {}  # least recently admitted first
        self._is_open = False
        self.configure(())

    @classmethod
    def open_to_one(cls, interfaces: Sequence[Interface]) -> Membership:
        """Of a server that takes one client at a time, whoever it is, with whatever addresses, and remembers none."""
        membership = cls(interfaces, 1, {})
        membership._is_open = True
        return membership

    @property
    def remembered(self) -> dict[str, tuple[Address, ...]]:
        return self._addresses.remembered

    def admit(
        self, identity: PeerPolicy, session: int, wishes: Sequence[Address], is_connected: Callable[[int], bool]
    ) -> Admitted | Refusal:
        """Answer a peer that has proved its identity."""
        if self._is_open:
            identity = identity._replace(allowed=EVERYTHING)
        present = self._members.get(identity.name)
        if session > SESSION_MAX:
            return Refusal(SUPERSEDED, f"session {session}: a session number is at most {SESSION_MAX}")
        if present and is_connected(present.peer):
            if session < present.session:
                return Refusal(SUPERSEDED, REASONS[SUPERSEDED])
            if session == present.session:
                return self._admitted(present)
        peer = present.peer if present else self._spare(is_connected)
        if peer == NOBODY:
            return self._full()
        addresses = self._addresses.choose(
            identity, wishes, lambda name: name in self._members and is_connected(self._members[name].peer)
        )
        if isinstance(addresses, Refusal):
            return addresses
        member = Member(peer, identity, session, addresses)
        self._peer_handle(member)
        return self._admitted(member)

    def configure(self, identities: Iterable[PeerPolicy]) -> dict[int, Refusal]:
        """Take over a configuration. Returns the indexes whose sessions end, each with what to tell that peer."""
        before, self._configured = self._configured, {identity.name: identity for identity in identities}
        self._addresses.claim(self._configured)
        ended = {}
        for name, member in list(self._members.items()):
            identity = self._configured.get(name, member.identity)
            self._members[name] = member._replace(identity=identity)
            if name in before and name not in self._configured:
                ended[member.peer] = Refusal(REVOKED, REASONS[REVOKED])
            elif not self._addresses.suits(identity, member.addresses):
                ended[member.peer] = Refusal(
                    ADDRESS_TAKEN, "the server has another address for this peer now: connect again"
                )
            if member.peer in ended:
                self._release(name)
        return ended

    def routes(self) -> list[tuple[bytes, int, int]]:
        """Whose packets are whose, as pipeline.packet.route_table takes it: network address, prefix length, index.

        A hole, NOBODY's, is cut into a member's networks for the server's own addresses, for its subnets, of which a
        peer has what it was given and no more, and for what belongs to peers that are configured and no members.
        """
        if self._is_open:
            return [(network.network_address.packed, 0, 0) for network in EVERYTHING]
        table = {
            (address.packed, address.max_prefixlen): member.peer
            for member in self._members.values()
            for address in member.addresses
        }
        for network, length, name in self._addresses.claims:
            table.setdefault((network, length), self._members[name].peer if name in self._members else NOBODY)
        return _without_idle_holes([(network, length, peer) for (network, length), peer in table.items()])

    def listing(self) -> list[Member]:
        """Every peer that is configured or a member, by name."""
        absent = {
            name: Member(NOBODY, identity, 0, identity.fixed or self.remembered.get(name, ()))
            for name, identity in self._configured.items()
        }
        return [member for _, member in sorted({**absent, **self._members}.items())]

    def _spare(self, is_connected: Callable[[int], bool]) -> int:
        used = {member.peer: None for member in self._members.values()}
        unused = (peer for peer in range(len(self.sessions)) if peer not in used)
        return next((peer for peer in chain(unused, used) if not is_connected(peer)), NOBODY)

    def _full(self) -> Refusal:
        if self._is_open:
            return Refusal(BUSY, REASONS[BUSY])
        return Refusal(FULL, f"{REASONS[FULL]}, max_clients {len(self.sessions)}: try again later")

    def _peer_handle(self, member: Member) -> None:
        """The peer has this index, session and addresses; whoever had the index, or one of the addresses, has not."""
        name = member.identity.name
        for other in [other for other, there in self._members.items() if there.peer == member.peer]:
            del self._members[other]
        self._members[name] = member
        self.sessions[member.peer] = member.session
        if not self._is_open:
            for loser in self._addresses.give(name, member.addresses, self._members):
                self._release(loser)

    def _release(self, name: str) -> None:
        """A member no longer; the index stays unused while there is a connection under it."""
        member = self._members.pop(name, None)
        if member:
            self.sessions[member.peer] = ENDED

    def _admitted(self, member: Member) -> Admitted:
        return Admitted(member.peer, tuple(map(self._addresses.interface, member.addresses)))


def _without_idle_holes(routes: list[tuple[bytes, int, int]]) -> list[tuple[bytes, int, int]]:
    """The same without the holes that are in nobody's network: where there is no route, nobody has it anyway."""
    peers = RouteTable()
    peers.replace(route for route in routes if route[2] != NOBODY)
    return [route for route in routes if route[2] != NOBODY or peers.look_up(route[0]) != NOBODY]
