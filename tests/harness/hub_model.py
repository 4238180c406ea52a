"""A Membership beside its configuration and the indexes that are connected: what tests of the rules of a hub step."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network

from pipeline.packet.route_table import NO_PEER, RouteTable
from pipeline.peers.address_assignment import PeerPolicy, Refusal
from pipeline.peers.membership import Assigned, Membership
from pipeline.wire.messages import TEXT_BYTES_MAX

INTERFACES = ("10.0.0.1/24", "fd00::1/64")
V4 = ("10.0.0.1/24",)


def policy(name: str, *allowed: str, fixed: Iterable[str] = (), rate: int = 0) -> PeerPolicy:
    return PeerPolicy(name, tuple(map(ip_network, allowed)), tuple(map(ip_address, fixed)), rate)


ANN, BOB, CYD, DAN = map(policy, ("ann", "bob", "cyd", "dan"))


class HubModel:
    """`connected`: the indexes under which there are connections."""

    def __init__(
        self, *configured: PeerPolicy, interfaces: Iterable[str] = V4, capacity: int = 8, remembered: dict | None = None
    ) -> None:
        self.membership = Membership(tuple(map(ip_interface, interfaces)), capacity, remembered or {})
        self.membership.configure(configured)
        self.connected: set[int] = set()

    @classmethod
    def for_one_client(cls, *interfaces: str) -> HubModel:
        hub = cls()
        hub.membership = Membership.for_one_client(tuple(map(ip_interface, interfaces or V4)))
        return hub

    def ask(self, peer: PeerPolicy, session: int = 1, *requested: str) -> Assigned | Refusal:
        """A peer asks for admission, and connects if it is admitted."""
        decision = self.membership.admit(peer, session, tuple(map(ip_address, requested)), self.connected.__contains__)
        if isinstance(decision, Assigned):
            self.connected.add(decision.peer)
        return decision

    def admit(self, peer: PeerPolicy, session: int = 1, *requested: str) -> int:
        """The index of a peer that must be admitted."""
        decision = self.ask(peer, session, *requested)
        assert isinstance(decision, Assigned), decision
        return decision.peer

    def assigns(self, peer: PeerPolicy, session: int = 1, *requested: str) -> list[str]:
        """The addresses of a peer that must be admitted."""
        decision = self.ask(peer, session, *requested)
        assert isinstance(decision, Assigned), decision
        return [str(address.ip) for address in decision.addresses]

    def refuses(self, peer: PeerPolicy, session: int = 1, *requested: str) -> int:
        """The reason of a refusal, which must change nothing."""
        before = self.state()
        decision = self.ask(peer, session, *requested)
        assert isinstance(decision, Refusal), decision
        assert self.state() == before
        assert len(decision.text.encode()) <= TEXT_BYTES_MAX
        return decision.reason

    def state(self) -> tuple:
        members = self.membership
        return members.list_members(), members.routes(), list(members.remembered.items())

    def disconnect(self, peer: PeerPolicy) -> None:
        self.connected.discard(self.index(peer))

    def index(self, peer: PeerPolicy) -> int:
        return next((m.peer for m in self.membership.list_members() if m.policy.name == peer.name), NO_PEER)

    def session(self, peer: PeerPolicy) -> int:
        """The current session of a member."""
        return next(m.session for m in self.membership.list_members() if m.policy.name == peer.name)

    def index_at(self, address: str) -> int:
        """The index to which packets for this address go, and from which it may come."""
        table = RouteTable()
        table.replace(self.membership.routes())
        return table.lookup(ip_address(address).packed)

    def routes(self) -> set[tuple[str, int]]:
        return {(str(ip_network((network, length))), peer) for network, length, peer in self.membership.routes()}
