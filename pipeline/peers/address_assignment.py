"""Which tunnel address is whose, and which ones a peer gets.

gets        of each IP version the fixed addresses; else those that it wishes; without any wish one in each subnet,
            what it had before or the lowest that is free
may have    a host's address, in a subnet of the server or in its allowed prefixes, not the server's own
whose       by longest prefix over all fixed addresses, allowed prefixes and subnets: a peer's prefix inside a
            subnet is that peer's alone. A subnet is anybody's, the server's own addresses are nobody's; of two
            peers with the same prefix the first in the configuration has it
free        no other peer's, connected or not: `remembered` has what each was given. When a subnet is exhausted,
            one is taken from a peer that is neither configured nor connected, the least recently admitted.
            A fixed address is taken from whoever has it and is not connected
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from pipeline.packet.address_pool import AddressPool
from pipeline.packet.route_table import NOBODY, RouteTable
from pipeline.wire.messages import (
    ADDRESS_OUTSIDE,
    ADDRESS_TAKEN,
    ADDRESSES_MAX,
    NO_ADDRESS,
    Address,
    Interface,
    Network,
)

IsConnected = Callable[[str], bool]

STRANGERS_MAX = 4096  # whoever makes up names on an open server fills no memory with them
RESERVED = ip_network("240.0.0.0/4")  # RFC 1112, 4; 255.255.255.255 is in it
ANYBODY = ""  # in place of a name

CHOOSE = 'choose another tunnel_addr, or "auto" to be given one'


class PeerPolicy(NamedTuple):
    """A peer as it is configured. `rate`: bytes a second, 0 for no limit."""

    name: str
    allowed: tuple[Network, ...] = ()
    fixed: tuple[Address, ...] = ()
    rate: int = 0


class Refusal(NamedTuple):
    """`reason`: one of pipeline.wire.messages's. The text says what to do."""

    reason: int
    text: str


class AddressAssignment:
    """The addresses of one server.

    own           the server's
    claims        network address, prefix length, and whose that is, a name or ANYBODY; of two for one the first counts
    remembered    name -> addresses, least recently admitted first
    """

    def __init__(self, interfaces: Sequence[Interface], remembered: Mapping[str, Iterable[str | Address]]) -> None:
        self.own = [interface.ip for interface in interfaces]
        self.claims: list[tuple[bytes, int, str]] = []
        self.remembered: dict[str, tuple[Address, ...]] = {}
        self._pools = [AddressPool(interface) for interface in interfaces]
        self._configured: Collection[str] = ()
        self._holders: dict[Address, str] = {}
        self._ground = RouteTable()  # leads to an index of `claims`
        self._reserved: dict[AddressPool, list[tuple[int, int, str]]] = {}
        for name, addresses in remembered.items():
            self._hold(name, [address for address in map(ip_address, addresses) if address not in self._holders])

    def claim(self, identities: Mapping[str, PeerPolicy]) -> None:
        """Take over a configuration. What peers have, they keep until somebody asks whether it `suits`."""
        self._configured = identities.keys()
        claims = [
            *((ip_network(address), ANYBODY) for address in self.own),
            *((pool.network, ANYBODY) for pool in self._pools),
            *_claims(identities.values()),
        ]
        self.claims = [(network.network_address.packed, network.prefixlen, name) for network, name in claims]
        self._ground.replace((*claim[:2], index) for index, claim in enumerate(self.claims))
        self._reserved = {
            pool: sorted(
                (int(network[0]), int(network[-1]), name) for network, name in claims if _is_part(network, pool.network)
            )
            for pool in self._pools
        }

    def choose(
        self, identity: PeerPolicy, wishes: Sequence[Address], is_connected: IsConnected
    ) -> tuple[Address, ...] | Refusal:
        """What the peer gets, or why nothing. It has it only when it is given."""
        for address in identity.fixed:
            if refusal := self._fixed_objection(identity, address, is_connected):
                return refusal
        versions = _not_fixed(identity)
        wanted = [address for address in dict.fromkeys(wishes) if address.version in versions]
        for address in wanted:
            if refusal := self._objection(identity, address):
                return refusal
        return (*identity.fixed, *wanted)[:ADDRESSES_MAX] if wishes else self._unasked(identity, is_connected)

    def suits(self, identity: PeerPolicy, addresses: Sequence[Address]) -> bool:
        """Whether the peer may keep these, which it has."""
        versions = _not_fixed(identity)
        others = [address for address in addresses if address.version in versions]
        return set(addresses) - set(others) == set(identity.fixed) and not any(
            self._objection(identity, address) for address in others
        )

    def give(self, name: str, addresses: Sequence[Address], members: Collection[str]) -> list[str]:
        """From now on the peer has these and no others. Returns who loses one by that.

        `members` are remembered whatever happens.
        """
        self._forget(name)
        losers = [self._holders[address] for address in addresses if address in self._holders]
        for loser in losers:
            self.remembered[loser] = tuple(old for old in self.remembered[loser] if old not in addresses)
        self._hold(name, addresses)
        strangers = [other for other in self.remembered if other not in self._configured and other not in members]
        for stranger in strangers[:-STRANGERS_MAX]:
            self._forget(stranger)
        return losers

    def interface(self, address: Address) -> Interface:
        """The address with the prefix length of its subnet; of a host where it is in none."""
        for pool in self._pools:
            if address in pool.network:
                return ip_interface((address, pool.network.prefixlen))
        return ip_interface(address)

    def _objection(self, identity: PeerPolicy, address: Address) -> Refusal | None:
        """Why the peer may not have an address that is not fixed."""
        pools = [pool for pool in self._pools if address in pool.network]
        if address in self.own:
            return Refusal(ADDRESS_TAKEN, f"{address} is the server's own: {CHOOSE}")
        if not _is_unicast(address) or not all(pool.contains(address) for pool in pools):
            return Refusal(ADDRESS_OUTSIDE, f"{address} is not a host's address: {CHOOSE}")
        if not pools and not any(address in network for network in identity.allowed):
            subnets = [str(pool.network) for pool in self._pools if pool.version == address.version]
            where = subnets[0] if len(subnets) == 1 else "a subnet of the server"
            return Refusal(ADDRESS_OUTSIDE, f"{address} is not in {where}, nor allowed to this peer: {CHOOSE}")
        if self._owner(address) not in (ANYBODY, identity.name) or self._is_held(identity, address):
            return Refusal(ADDRESS_TAKEN, f"{address} is another peer's: {CHOOSE}")
        return None

    def _fixed_objection(self, identity: PeerPolicy, address: Address, is_connected: IsConnected) -> Refusal | None:
        if address in self.own:
            whose = "the server's own"
        elif self._owner(address) not in (ANYBODY, identity.name):
            whose = "fixed for another peer too, or allowed to it"
        elif self._is_held(identity, address) and is_connected(self._holders[address]):
            whose = "in use by another peer"
        else:
            return None
        return Refusal(
            ADDRESS_TAKEN,
            f"{address}, fixed for this peer in the server's configuration, is {whose}: the server must fix another",
        )

    def _unasked(self, identity: PeerPolicy, is_connected: IsConnected) -> tuple[Address, ...] | Refusal:
        """What a peer gets that wishes nothing."""
        versions = _not_fixed(identity)
        chosen = [
            *identity.fixed,
            *(
                address
                for address in self.remembered.get(identity.name, ())
                if address.version in versions and not self._objection(identity, address)
            ),
        ]
        for pool in self._pools:
            if pool.is_empty or pool.version not in versions or any(map(pool.contains, chosen)):
                continue
            address = self._free(pool, identity) or self._forfeited(pool, identity, is_connected)
            if not address:
                return Refusal(NO_ADDRESS, f"no address in {pool.network} is free: the server needs a larger subnet")
            chosen.append(address)
        return tuple(chosen[:ADDRESSES_MAX]) or Refusal(
            NO_ADDRESS,
            "the server has no subnet to give an address from: choose a tunnel_addr that is allowed to this peer",
        )

    def _free(self, pool: AddressPool, identity: PeerPolicy) -> Address | None:
        taken = {int(address) for address in self._holders if address.version == pool.version}
        return pool.first_free(
            taken, ((first, last) for first, last, name in self._reserved[pool] if name != identity.name)
        )

    def _forfeited(self, pool: AddressPool, identity: PeerPolicy, is_connected: IsConnected) -> Address | None:
        for name, addresses in self.remembered.items():
            if name not in self._configured and not is_connected(name):
                for address in addresses:
                    if pool.contains(address) and self._owner(address) in (ANYBODY, identity.name):
                        return address
        return None

    def _owner(self, address: Address) -> str:
        index = self._ground.peer_of(address.packed)
        return ANYBODY if index == NOBODY else self.claims[index][2]

    def _is_held(self, identity: PeerPolicy, address: Address) -> bool:
        return self._holders.get(address, identity.name) != identity.name

    def _hold(self, name: str, addresses: Sequence[Address]) -> None:
        self.remembered[name] = tuple(addresses)
        self._holders.update(dict.fromkeys(addresses, name))

    def _forget(self, name: str) -> None:
        for address in self.remembered.pop(name, ()):
            del self._holders[address]


def _claims(identities: Collection[PeerPolicy]) -> list[tuple[Network, str]]:
    """What these peers claim: their fixed addresses before all prefixes that are allowed to them."""
    return [
        *((ip_network(address), identity.name) for identity in identities for address in identity.fixed),
        *((network, identity.name) for identity in identities for network in identity.allowed),
    ]


def _not_fixed(identity: PeerPolicy) -> set[int]:
    return {4, 6} - {address.version for address in identity.fixed}


def _is_part(network: Network, subnet: Network) -> bool:
    return network.version == subnet.version and network != subnet and network.subnet_of(subnet)


def _is_unicast(address: Address) -> bool:
    """Whether a host can have it and be reached from elsewhere."""
    return not (
        address.is_multicast
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address in RESERVED
    )
