"""Reach: the rules of each peer, compiled, and the decision about a packet with its reason. Pure.

A peer may begin what its rules name, and answer whatever others begin. Its rules are those of its own `may_reach` and
those of its groups, together; a peer that has neither has those of all clients. With `any` among them a peer needs no
rules. A group that nobody describes gives nothing. So a misspelt name shuts out, and never lets in.

    compile_policies(peers, terms)    of each peer that has rules, its Policy
    Policy.find(...)                  the rule that lets a packet pass, or None: what tun workers ask, and `explain`
    sources(owners)                   which addresses are whose, without overlaps, for the kernel

Equal rules are compiled once: peers with them share a Policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from ipaddress import ip_network
from typing import NamedTuple

from pipeline.policy.targets import (
    ANY,
    ANY_PROTOCOL,
    EVERY_ADDRESS,
    GROUP,
    HUB,
    ICMP,
    ICMPV6,
    INTERNET,
    PEER,
    PORT_MAX,
    PUBLIC,
    Address,
    Network,
    Target,
    hosts,
    parse_target,
)

OWN, OF_ALL = "its own", "of all clients"

Row = tuple[bytes, int, int, int, int]
"""Network address of 4 or 16 bytes, prefix length, protocol (ANY_PROTOCOL for every one), first and last port."""


class PeerFacts(NamedTuple):
    """A peer: its addresses in the tunnel, the networks behind it, and what was written about it. None: nothing was."""

    name: str
    addresses: tuple[Address, ...] = ()
    allowed: tuple[Network, ...] = ()
    groups: tuple[str, ...] = ()
    may_reach: tuple[str, ...] | None = None


class Terms(NamedTuple):
    """The server's: the rules of all clients, those of each group, its own addresses in the tunnel."""

    may_reach: tuple[str, ...] = (ANY,)
    groups: Mapping[str, tuple[str, ...]] = {}
    own: tuple[Address, ...] = ()


class Rule(NamedTuple):
    """One target, and the networks that it means now. `origin`: OWN, OF_ALL, or the group that it is from."""

    target: Target
    origin: str
    networks: tuple[Network, ...]

    @property
    def words(self) -> str:
        return f'"{self.target.text}" {self.origin if self.origin in (OWN, OF_ALL) else f"of group {self.origin}"}'

    def rows(self) -> Iterable[Row]:
        for network in self.networks:
            for protocol in self.target.protocols:
                number = ICMPV6 if protocol == ICMP and network.version == 6 else protocol
                for first, last in self.target.ports:
                    yield network.network_address.packed, network.prefixlen, number, first, last


class Reach:
    """The rows of a policy, to be asked about packets. Each prefix length costs a look, however many rows there are."""

    def __init__(self, rows: Sequence[Row]) -> None:
        found: dict[int, dict[int, dict[int, list[tuple[int, int, int, int]]]]] = {4: {}, 16: {}}
        for index, (address, length, protocol, first, last) in enumerate(rows):
            shift = 8 * len(address) - length
            of_prefix = found[len(address)].setdefault(shift, {})
            of_prefix.setdefault(int.from_bytes(address, "big") >> shift, []).append((protocol, first, last, index))
        self._families = {size: list(of_size.items()) for size, of_size in found.items()}

    def find(self, address: bytes, protocol: int, first: int, last: int) -> int:
        """The row that has this address, protocol and all of these ports; -1 if there is none.

        ANY_PROTOCOL asks for a row of every protocol.
        """
        number = int.from_bytes(address, "big")
        for shift, prefixes in self._families[len(address)]:
            for of_row, low, high, index in prefixes.get(number >> shift, ()):
                if of_row in (protocol, ANY_PROTOCOL) and low <= first and last <= high:
                    return index
        return -1


class Policy:
    """The rules of a peer, or of several with equal ones."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.rows: list[Row] = []
        self._of_row: list[Rule] = []
        for rule in rules:
            rows = list(rule.rows())
            self.rows += rows
            self._of_row += [rule] * len(rows)

    @cached_property
    def reach(self) -> Reach:
        return Reach(self.rows)

    def find(self, address: Address, protocol: int, first: int = 0, last: int = PORT_MAX) -> Rule | None:
        """The rule that lets a packet pass to all of these ports."""
        index = self.reach.find(address.packed, protocol, first, last)
        return self._of_row[index] if index >= 0 else None

    def about(self, address: Address) -> list[Rule]:
        """The rules that name this address, whatever the protocol."""
        return [rule for rule in self.rules if any(address in network for network in rule.networks)]


def compile_policies(peers: Sequence[PeerFacts], terms: Terms) -> dict[str, Policy]:
    """By name, of each peer that may not reach everything. The rules have been checked: ValueError for a target that is
    none."""
    places = _Places(peers, terms)
    made: dict[tuple[tuple[str, ...] | None, tuple[str, ...]], Policy] = {}
    found = {}
    for peer in peers:
        written = _written(peer, terms)
        if any(text == ANY for text, _ in written):
            continue
        key = peer.may_reach, peer.groups
        if key not in made:
            made[key] = Policy([places.rule(text, origin) for text, origin in written])
        found[peer.name] = made[key]
    return found


def _written(peer: PeerFacts, terms: Terms) -> list[tuple[str, str]]:
    """Each target of a peer, and where it is from."""
    if peer.may_reach is None and not peer.groups:
        return [(text, OF_ALL) for text in terms.may_reach]
    return [
        *((text, OWN) for text in peer.may_reach or ()),
        *((text, group) for group in peer.groups for text in terms.groups.get(group, ())),
    ]


class _Places:
    """The meaning of words in targets: the networks of each group, peer and word."""

    def __init__(self, peers: Sequence[PeerFacts], terms: Terms) -> None:
        self._networks: dict[tuple[str, str], tuple[Network, ...]] = {
            (ANY, ""): EVERY_ADDRESS,
            (INTERNET, ""): PUBLIC,
            (HUB, ""): hosts(terms.own),
        }
        groups: dict[str, list[Network]] = {}
        for peer in peers:
            own = hosts(peer.addresses)
            self._networks[PEER, peer.name] = own
            for group in dict.fromkeys(peer.groups):
                groups.setdefault(group, []).extend(own)
        self._networks |= {(GROUP, name): tuple(networks) for name, networks in groups.items()}

    def rule(self, text: str, origin: str) -> Rule:
        target = parse_target(text)
        if target.network is not None:
            return Rule(target, origin, (target.network,))
        return Rule(target, origin, self._networks.get((target.kind, target.name), ()))


def sources(owners: Iterable[tuple[Network, str]]) -> list[tuple[Network, str]]:
    """The networks of each owner without those of others inside them, as the longest prefix has it. Of two owners of
    one network the first counts."""
    of_network: dict[Network, str] = {}
    for network, name in owners:
        of_network.setdefault(network, name)
    found: list[tuple[Network, str]] = []
    for version in (4, 6):
        ordered = sorted(
            (network for network in of_network if network.version == version),
            key=lambda each: (int(each.network_address), each.prefixlen),
        )
        for index, network in enumerate(ordered):
            found += [(part, of_network[network]) for part in _left_of(network, ordered, index + 1)]
    return found


def _left_of(network: Network, ordered: Sequence[Network], following: int) -> list[Network]:
    """A network without the narrower ones inside it: those follow it in order."""
    at, end = int(network.network_address), int(network.broadcast_address) + 1
    parts: list[Network] = []
    while following < len(ordered) and int(ordered[following].network_address) < end:
        hole = ordered[following]
        parts += _between(at, int(hole.network_address), network)
        at = max(at, int(hole.broadcast_address) + 1)
        following += 1
    return parts + _between(at, end, network) if parts or at != int(network.network_address) else [network]


def _between(first: int, end: int, like: Network) -> list[Network]:
    """The addresses from first to before end, as networks."""
    found = []
    bits = like.max_prefixlen
    while first < end:
        size = min(first & -first or 1 << bits, 1 << (end - first).bit_length() - 1)
        found.append(ip_network((first.to_bytes(bits // 8, "big"), bits - size.bit_length() + 1)))
        first += size
    return found
