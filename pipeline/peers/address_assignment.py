"""Which tunnel address belongs to which peer, and which addresses a peer gets.

assigned      of each IP version: the fixed addresses of the peer; else the addresses that it requests; else, for a
              peer without any request, one address in each subnet, the previous one or the lowest that is free
permitted     the address of a host, in a subnet of the server or in an allowed prefix of the peer, and not the server's
owner         by longest prefix over all fixed addresses, allowed prefixes and subnets. A peer's prefix inside a subnet
              is reserved for that peer. A subnet is open to every peer; the server's own addresses are open to none.
              Of two peers with one prefix, the first in the configuration owns it
free          held by no other peer, connected or not: `remembered` has what each peer was given. When a subnet is
              exhausted, an address is reclaimed from the least recently admitted peer that is neither configured nor
              connected. A fixed address is taken away from any holder that is not connected

offer() chooses and changes nothing; commit() hands the addresses over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from pipeline.packet.address_pool import AddressPool, is_part_of
from pipeline.packet.route_table import NO_PEER, RouteTable
from pipeline.policy.quota import UNLIMITED, QuotaTerms
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

UNCONFIGURED_MAX = 4096
"""Peers that are remembered without being configured: clients of an open server cannot fill memory with new names."""

RESERVED = ip_network("240.0.0.0/4")  # RFC 1112, 4; 255.255.255.255 is in it
UNOWNED = ""  # in place of a name

ADVICE = 'choose another tunnel_addr, or "auto" to get one from the server'


class PeerPolicy(NamedTuple):
    """The configuration's grants to a peer. `rate`, `bulk_rate`: bytes a second of all and of the class bulk, 0 for no
    limit, None for that of all peers."""

    name: str
    allowed: tuple[Network, ...] = ()
    fixed: tuple[Address, ...] = ()
    rate: int = 0
    quota: QuotaTerms = UNLIMITED
    groups: tuple[str, ...] = ()
    may_reach: tuple[str, ...] | None = None
    bulk_rate: int | None = None


class Refusal(NamedTuple):
    """`reason`: one of pipeline.wire.messages's. The text says what to do."""

    reason: int
    text: str


class AddressAssignment:
    """The addresses of one server.

    own           the server's
    claims        network address, prefix length, name of the owner or UNOWNED; the first claim to a network counts
    remembered    name -> addresses, least recently admitted peer first
    """

    def __init__(self, interfaces: Sequence[Interface], remembered: Mapping[str, Iterable[str | Address]]) -> None:
        self.own = [interface.ip for interface in interfaces]
        self.claims: list[tuple[bytes, int, str]] = []
        self.remembered: dict[str, tuple[Address, ...]] = {}
        self._pools = [AddressPool(interface) for interface in interfaces]
        self._configured: Collection[str] = ()
        self._holders: dict[Address, str] = {}
        self._owners = RouteTable()  # leads to an index of `claims`
        self._reserved: dict[AddressPool, list[tuple[int, int, str]]] = {}
        for name, addresses in remembered.items():
            self._record(name, [address for address in map(ip_address, addresses) if address not in self._holders])

    def configure(self, policies: Mapping[str, PeerPolicy]) -> None:
        """Take over a configuration. Peers keep their addresses until the caller asks still_valid()."""
        self._configured = policies.keys()
        claims = [
            *((ip_network(address), UNOWNED) for address in self.own),
            *((pool.network, UNOWNED) for pool in self._pools),
            *_claims(policies.values()),
        ]
        self.claims = [(network.network_address.packed, network.prefixlen, name) for network, name in claims]
        self._owners.replace((*claim[:2], index) for index, claim in enumerate(self.claims))
        self._reserved = {
            pool: sorted(
                (int(network[0]), int(network[-1]), name)
                for network, name in claims
                if network != pool.network and is_part_of(network, pool.network)
            )
            for pool in self._pools
        }

    def offer(
        self, policy: PeerPolicy, requested: Sequence[Address], is_connected: IsConnected
    ) -> tuple[Address, ...] | Refusal:
        """The addresses that the peer would get, or why it gets none. They are the peer's only after commit()."""
        for address in policy.fixed:
            if refusal := self._fixed_objection(policy, address, is_connected):
                return refusal
        versions = _versions_not_fixed(policy)
        wanted = [address for address in dict.fromkeys(requested) if address.version in versions]
        for address in wanted:
            if refusal := self._objection(policy, address):
                return refusal
        if requested:
            return (*policy.fixed, *wanted)[:ADDRESSES_MAX]
        return self._offer_unrequested(policy, is_connected)

    def still_valid(self, policy: PeerPolicy, addresses: Sequence[Address]) -> bool:
        """Whether the peer may keep the addresses that it has."""
        versions = _versions_not_fixed(policy)
        others = [address for address in addresses if address.version in versions]
        return set(addresses) - set(others) == set(policy.fixed) and not any(
            self._objection(policy, address) for address in others
        )

    def commit(self, name: str, addresses: Sequence[Address], members: Collection[str]) -> list[str]:
        """Give the peer these addresses and no others. Returns the peers that lose one of them.

        `members` are remembered in any case.
        """
        self._forget(name)
        losers = [self._holders[address] for address in addresses if address in self._holders]
        for loser in losers:
            self.remembered[loser] = tuple(old for old in self.remembered[loser] if old not in addresses)
        self._record(name, addresses)
        unconfigured = [other for other in self.remembered if other not in self._configured and other not in members]
        for other in unconfigured[:-UNCONFIGURED_MAX]:
            self._forget(other)
        return losers

    def interface_of(self, address: Address) -> Interface:
        """The address with the prefix length of its subnet; with that of a host if it is in no subnet."""
        for pool in self._pools:
            if address in pool.network:
                return ip_interface((address, pool.network.prefixlen))
        return ip_interface(address)

    def _objection(self, policy: PeerPolicy, address: Address) -> Refusal | None:
        """Why the peer may not have an address that is not fixed."""
        pools = [pool for pool in self._pools if address in pool.network]
        if address in self.own:
            return Refusal(ADDRESS_TAKEN, f"{address} is the server's own address: {ADVICE}")
        if not _is_unicast(address) or not all(pool.contains(address) for pool in pools):
            return Refusal(ADDRESS_OUTSIDE, f"{address} is not the address of a host: {ADVICE}")
        if not pools and not any(address in network for network in policy.allowed):
            subnets = [str(pool.network) for pool in self._pools if pool.version == address.version]
            where = subnets[0] if len(subnets) == 1 else "a subnet of the server"
            return Refusal(ADDRESS_OUTSIDE, f"{address} is not in {where}, nor allowed to this peer: {ADVICE}")
        if self._owner_of(address) not in (UNOWNED, policy.name) or self._is_held_by_another(policy, address):
            return Refusal(ADDRESS_TAKEN, f"{address} belongs to another peer: {ADVICE}")
        return None

    def _fixed_objection(self, policy: PeerPolicy, address: Address, is_connected: IsConnected) -> Refusal | None:
        """Why the peer cannot have its fixed address now."""
        if address in self.own:
            found = "the server's own"
        elif self._owner_of(address) not in (UNOWNED, policy.name):
            found = "fixed for another peer too, or allowed to it"
        elif self._is_held_by_another(policy, address) and is_connected(self._holders[address]):
            found = "in use by another peer"
        else:
            return None
        return Refusal(
            ADDRESS_TAKEN,
            f"{address}, fixed for this peer in the server's configuration, is {found}: "
            "fix another address for it in the server's configuration",
        )

    def _offer_unrequested(self, policy: PeerPolicy, is_connected: IsConnected) -> tuple[Address, ...] | Refusal:
        """The addresses for a peer that requests none."""
        versions = _versions_not_fixed(policy)
        chosen = [
            *policy.fixed,
            *(
                address
                for address in self.remembered.get(policy.name, ())
                if address.version in versions and not self._objection(policy, address)
            ),
        ]
        for pool in self._pools:
            if pool.is_empty or pool.version not in versions or any(map(pool.contains, chosen)):
                continue
            address = self._free_address(pool, policy) or self._reclaimable(pool, policy, is_connected)
            if not address:
                return Refusal(NO_ADDRESS, f"no address in {pool.network} is free: the server needs a larger subnet")
            chosen.append(address)
        return tuple(chosen[:ADDRESSES_MAX]) or Refusal(
            NO_ADDRESS,
            "the server has no subnet to assign an address from: choose a tunnel_addr that is allowed to this peer",
        )

    def _free_address(self, pool: AddressPool, policy: PeerPolicy) -> Address | None:
        taken = {int(address) for address in self._holders if address.version == pool.version}
        return pool.first_free(
            taken, ((first, last) for first, last, name in self._reserved[pool] if name != policy.name)
        )

    def _reclaimable(self, pool: AddressPool, policy: PeerPolicy, is_connected: IsConnected) -> Address | None:
        """An address of a peer that is neither configured nor connected."""
        for name, addresses in self.remembered.items():
            if name not in self._configured and not is_connected(name):
                for address in addresses:
                    if pool.contains(address) and self._owner_of(address) in (UNOWNED, policy.name):
                        return address
        return None

    def _owner_of(self, address: Address) -> str:
        index = self._owners.lookup(address.packed)
        return UNOWNED if index == NO_PEER else self.claims[index][2]

    def _is_held_by_another(self, policy: PeerPolicy, address: Address) -> bool:
        return self._holders.get(address, policy.name) != policy.name

    def _record(self, name: str, addresses: Sequence[Address]) -> None:
        self.remembered[name] = tuple(addresses)
        self._holders.update(dict.fromkeys(addresses, name))

    def _forget(self, name: str) -> None:
        for address in self.remembered.pop(name, ()):
            del self._holders[address]


def _claims(policies: Collection[PeerPolicy]) -> list[tuple[Network, str]]:
    """The claims of these peers: all fixed addresses before all allowed prefixes."""
    return [
        *((ip_network(address), policy.name) for policy in policies for address in policy.fixed),
        *((network, policy.name) for policy in policies for network in policy.allowed),
    ]


def _versions_not_fixed(policy: PeerPolicy) -> set[int]:
    """IP versions of which the peer has no fixed address."""
    return {4, 6} - {address.version for address in policy.fixed}


def _is_unicast(address: Address) -> bool:
    """Whether a host can have the address and be reached at it from another network."""
    return not (
        address.is_multicast
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address in RESERVED
    )
