"""Targets: what a peer may reach, as it is written. Pure.

192.168.10.0/24              every protocol, to these addresses
192.168.10.5:443/tcp         a port; 443,8000-8100 are several; without a protocol those of TCP and of UDP
[fd00::/64]:443/tcp          an IPv6 address or network with ports is in brackets
192.168.10.5/icmp            a protocol without ports
group:office:443/tcp         the tunnel addresses of the peers in a group; peer:NAME: those of one peer
hub                          the server's own addresses in the tunnel
internet                     every public address
any                          every address
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ANY_PROTOCOL = 0
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "sctp": 132, "gre": 47, "esp": 50}
"""By name. ICMP stands for ICMPv6 as well, where the address is one of IPv6."""

WITH_PORTS = (TCP, UDP, PROTOCOLS["sctp"])
PORT_MAX = 65535
EVERY_PORT = ((0, PORT_MAX),)

ANY, HUB, INTERNET, GROUP, PEER, NETWORK = "any", "hub", "internet", "group", "peer", "network"
WORDS = (ANY, HUB, INTERNET)
NAMED = (GROUP, PEER)

TARGET_FORM = (
    'a target, such as "192.168.10.0/24", "192.168.10.5:443/tcp", "[fd00::5]:443/tcp", "192.168.10.5/icmp", '
    '"group:office", "peer:nas:445/tcp", "hub", "internet" or "any"'
)
_PROTOCOL = re.compile(r"(.*)/([A-Za-z]+)$", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

EVERY_ADDRESS: tuple[Network, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
        ),
    )
)
"""Of IPv4: private, shared, of this machine, of the link, for tests, multicast and reserved (RFC 6890)."""


class Target(NamedTuple):
    """`text`: as it was written. `name`: of a group or a peer; `network`: of an address or network alone."""

    text: str
    kind: str
    name: str = ""
    network: Network | None = None
    protocols: tuple[int, ...] = (ANY_PROTOCOL,)
    ports: tuple[tuple[int, int], ...] = EVERY_PORT

    @property
    def names_no_port(self) -> bool:
        return self.ports == EVERY_PORT


def parse_target(text: str) -> Target:
    """ValueError says what was expected."""
    place, protocol = text, ""
    if (found := _PROTOCOL.match(text)) is not None:
        place, protocol = found[1], found[2].lower()
        if protocol not in PROTOCOLS:
            raise ValueError(f"one of {', '.join(PROTOCOLS)} behind the last /, or nothing for every protocol")
    kind, name, network, written = _place(place)
    ports = _ports(written) if written is not None else EVERY_PORT
    protocols = (PROTOCOLS[protocol],) if protocol else (TCP, UDP) if written is not None else (ANY_PROTOCOL,)
    if written is not None and protocol and PROTOCOLS[protocol] not in WITH_PORTS:
        raise ValueError(f"no port with {protocol}, which has none")
    return Target(text, kind, name, network, protocols, ports)


def _place(text: str) -> tuple[str, str, Network | None, str | None]:
    """Kind, name, network, and the ports as they are written; None for none."""
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(TARGET_FORM)
        return NETWORK, "", _network(inner), rest[1:] if rest else None
    first, colon, rest = text.partition(":")
    if first in NAMED and colon:
        name, colon, rest = rest.partition(":")
        if not _NAME.fullmatch(name):
            raise ValueError(f'the name of a {first} behind "{first}:"')
        return first, name, None, rest if colon else None
    if first in WORDS:
        return first, "", None, rest if colon else None
    if ":" in rest:
        return NETWORK, "", _network(text), None
    return NETWORK, "", _network(first), rest if colon else None


def _network(text: str) -> Network:
    try:
        if "%" in text:
            raise ValueError
        loose = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(TARGET_FORM) from None
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f'a network without bits after its prefix, such as "{loose}"') from None


def _ports(text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found is not None else (0, 0)
        if not 1 <= first <= last <= PORT_MAX:
            raise ValueError(f"ports from 1 to {PORT_MAX} behind the colon, such as 443 or 443,8000-8100")
        ranges.append((first, last))
    return tuple(ranges)


def public_networks() -> tuple[Network, ...]:
    """Every public address, as networks: of IPv6 global unicast, which is 2000::/3."""
    left: list[IPv4Network] = [IPv4Network("0.0.0.0/0")]
    for hole in NOT_PUBLIC:
        assert isinstance(hole, IPv4Network)
        left = [part for each in left for part in (each.address_exclude(hole) if hole.subnet_of(each) else (each,))]
    return (*collapse_addresses(left), ip_network("2000::/3"))


PUBLIC = public_networks()


def hosts(addresses: Iterable[Address]) -> tuple[Network, ...]:
    """Each address as a network of its own."""
    return tuple(ip_network(address) for address in addresses)
