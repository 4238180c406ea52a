"""The members of a hub: which peer has which index, and which of its sessions is current.

An admitted peer is a *member*. It stays a member while it is away, until another peer needs its index. Membership is
never told that a connection has ended, so the end of an old connection cannot remove a peer that has just returned.
Instead the caller of admit() supplies `is_connected(index)`. It must be true also for a peer that was admitted a moment
ago and whose connection is not established yet.

    session      while a session of the peer is connected: an equal number is one connection more; a lower number that
                 has been replaced before is SUPERSEDED; any other number replaces that session. A lower number that is
                 new is a client that was started again with its clock set back. If nothing is connected, any
                 number will do
    index        the peer's own; else an unused one; else that of the least recently admitted member that is not
                 connected; else FULL. An index is never given away before the last connection under it has ended
    addresses    see pipeline.peers.address_assignment
    routes       a peer's addresses and its allowed prefixes, while it is a member; with one member at most, multicast
                 and link-local addresses as well. With `has_multicast` those of groups and broadcasts lead to
                 EVERYBODY, unless a longer allowed prefix of a peer has them

A refusal changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_network
from itertools import chain
from typing import NamedTuple

from pipeline.packet.address_pool import LINK_ADDRESSES
from pipeline.packet.route_table import DEFAULT_ROUTES, EVERYBODY, GROUP_ROUTES, LINK_ROUTES, NO_PEER, RouteTable
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

SESSION_MAX = (1 << 64) - 2  # docs/wire.md
REPLACED_MAX = 16  # sessions of a peer that are remembered: more starts than fall into the patience of any old process
EVERY_NETWORK = tuple(ip_network(route) for route in DEFAULT_ROUTES)


class Assigned(NamedTuple):
    """The index of an admitted peer, and its addresses with the prefix lengths of their subnets."""

    peer: int
    addresses: tuple[Interface, ...]


class Member(NamedTuple):
    """A peer with its index. In a list of members, NO_PEER is the index of a configured peer that is no member."""

    peer: int
    policy: PeerPolicy
    session: int
    addresses: tuple[Address, ...]
    replaced: tuple[int, ...] = ()  # earlier sessions, the latest last


class Membership:
    """The members of one server.

    `remembered`: name -> addresses, least recently admitted first: what a server keeps over its restarts. The
    constructor accepts addresses as texts.
    """

    def __init__(
        self, interfaces: Sequence[Interface], capacity: int, remembered: Mapping[str, Iterable[str | Address]]
    ) -> None:
        self._capacity = capacity
        self._addresses = AddressAssignment(interfaces, remembered)
        self._configured: dict[str, PeerPolicy] = {}
        self._members: dict[str, Member] = {}  # least recently admitted first
        self._is_for_one = False
        self.has_multicast = False
        self._broadcasts = [
            interface.network.broadcast_address.packed
            for interface in interfaces
            if interface.version == 4 and interface.network.num_addresses > LINK_ADDRESSES
        ]
        self.configure(())

    @classmethod
    def for_one_client(cls, interfaces: Sequence[Interface]) -> Membership:
        """For a server that admits one client at a time, any client with any addresses, and remembers none."""
        membership = cls(interfaces, 1, {})
        membership._is_for_one = True
        return membership

    @property
    def remembered(self) -> dict[str, tuple[Address, ...]]:
        return self._addresses.remembered

    def admit(
        self, policy: PeerPolicy, session: int, requested: Sequence[Address], is_connected: Callable[[int], bool]
    ) -> Assigned | Refusal:
        """Admit a peer that has proved its identity, or refuse it."""
        if self._is_for_one:
            policy = policy._replace(allowed=EVERY_NETWORK)
        present = self._members.get(policy.name)
        if session > SESSION_MAX:
            return Refusal(SUPERSEDED, f"session {session}: a session number is at most {SESSION_MAX}")
        if present and is_connected(present.peer):
            if session < present.session and session in present.replaced:
                return Refusal(SUPERSEDED, REASONS[SUPERSEDED])
            if session == present.session:
                return self._assigned(present)
        peer = present.peer if present else self._free_index(is_connected)
        if peer == NO_PEER:
            return self._full()
        addresses = self._addresses.offer(
            policy, requested, lambda name: name in self._members and is_connected(self._members[name].peer)
        )
        if isinstance(addresses, Refusal):
            return addresses
        member = Member(peer, policy, session, addresses, _replaced_by(session, present))
        self._add_member(member)
        return self._assigned(member)

    def configure(
        self, policies: Iterable[PeerPolicy], disowned: Mapping[str, str] | None = None
    ) -> dict[int, Refusal]:
        """Take over a configuration. Returns the indexes whose sessions end, each with the reason.

        `disowned`: peers that may not be connected as they have proved to be, each with the reason.
        """
        disowned = disowned or {}
        before, self._configured = self._configured, {policy.name: policy for policy in policies}
        self._addresses.configure(self._configured)
        ended = {}
        for name, member in list(self._members.items()):
            policy = self._configured.get(name, member.policy)
            self._members[name] = member._replace(policy=policy)
            if name in before and name not in self._configured:
                ended[member.peer] = Refusal(REVOKED, REASONS[REVOKED])
            elif name in disowned:
                ended[member.peer] = Refusal(REVOKED, disowned[name])
            elif not self._addresses.still_valid(policy, member.addresses):
                ended[member.peer] = Refusal(
                    ADDRESS_TAKEN, "the server has another address for this peer now: connect again"
                )
            if member.peer in ended:
                self._remove_member(name)
        return ended

    def routes(self) -> list[tuple[bytes, int, int]]:
        """The routes to all members, for a RouteTable: network address, prefix length, index.

        NO_PEER makes a hole in a member's networks: for the server's own addresses; for its subnets, of which a peer
        has only what it was given; and for the networks of peers that are configured but no members.
        """
        if self._is_for_one:
            return [(address, length, 0) for address, length in DEFAULT_ROUTES]
        table: dict[tuple[bytes, int], int] = {
            (address.packed, address.max_prefixlen): member.peer
            for member in self._members.values()
            for address in member.addresses
        }
        if self._capacity == 1:  # the tunnel is a link between two ends
            table.update({route: member.peer for member in self._members.values() for route in LINK_ROUTES})
        if self.has_multicast and self._capacity > 1:
            groups = [*GROUP_ROUTES, *((address, 32) for address in self._broadcasts)]
            table.update(dict.fromkeys(groups, EVERYBODY))
        for network, length, name in self._addresses.claims:
            table.setdefault((network, length), self._members[name].peer if name in self._members else NO_PEER)
        return _without_idle_holes([(network, length, peer) for (network, length), peer in table.items()])

    def list_members(self) -> list[Member]:
        """Every peer that is configured or a member, by name."""
        absent = {
            name: Member(NO_PEER, policy, 0, policy.fixed or self.remembered.get(name, ()))
            for name, policy in self._configured.items()
        }
        return [member for _, member in sorted({**absent, **self._members}.items())]

    def _free_index(self, is_connected: Callable[[int], bool]) -> int:
        used = {member.peer: None for member in self._members.values()}
        unused = (peer for peer in range(self._capacity) if peer not in used)
        return next((peer for peer in chain(unused, used) if not is_connected(peer)), NO_PEER)

    def _full(self) -> Refusal:
        if self._is_for_one:
            return Refusal(BUSY, REASONS[BUSY])
        return Refusal(FULL, f"{REASONS[FULL]}, max_clients {self._capacity}: try again later")

    def _add_member(self, member: Member) -> None:
        """Give the peer this index, session and addresses. Earlier holders of the index or of an address lose them."""
        name = member.policy.name
        for other in [other for other, present in self._members.items() if present.peer == member.peer]:
            del self._members[other]
        self._members[name] = member
        if not self._is_for_one:
            for loser in self._addresses.commit(name, member.addresses, self._members):
                self._remove_member(loser)

    def _remove_member(self, name: str) -> None:
        """The index stays unused while there is a connection under it."""
        self._members.pop(name, None)

    def _assigned(self, member: Member) -> Assigned:
        return Assigned(member.peer, tuple(map(self._addresses.interface_of, member.addresses)))


def _replaced_by(session: int, present: Member | None) -> tuple[int, ...]:
    """The earlier sessions of a peer once this one has taken the place of the present one."""
    if present is None:
        return ()
    earlier = [number for number in (*present.replaced, present.session) if number != session]
    return tuple(dict.fromkeys(earlier))[-REPLACED_MAX:]


def _without_idle_holes(routes: list[tuple[bytes, int, int]]) -> list[tuple[bytes, int, int]]:
    """The routes without those holes that lie in no peer's network: an address without a route has no peer anyway."""
    peers = RouteTable()
    peers.replace(route for route in routes if route[2] != NO_PEER)
    return [route for route in routes if route[2] != NO_PEER or peers.longest_match(route[0]) != NO_PEER]
