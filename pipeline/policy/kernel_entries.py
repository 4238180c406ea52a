"""Entries of the kernel that this program puts there or looks at: links, addresses, routes. Values alone.

Our routes are in the main table, or in the tunnel table (policy.bypass). Two marks tell them from the routes of others:

    ROUTE_PROTOCOL    the protocol number of each route of ours (`ip route show proto 116`)
    metric            of two routes to one network the kernel uses the one with the lower metric. Ours never have
                      metric 0, which an administrator's routes have by default, so we can add ours beside any other
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

IPAddress = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

ROUTE_PROTOCOL = 116
"""Unassigned in linux/rtnetlink.h and in iproute2's rt_protos; "t" for tunnel."""

MAIN_TABLE = 254  # RT_TABLE_MAIN, linux/rtnetlink.h

CONFIGURED_METRIC = 10
"""Of a route that our own configuration asks for: better than any that a network manager makes (50 and more)."""

PUSHED_METRIC = 40_000
"""Of a route that the server asks for: worse than any route that the host has to the same network."""


class Link(NamedTuple):
    """A network interface."""

    device: int
    name: str
    is_up: bool  # administratively


class Address(NamedTuple):
    """An address of an interface, and the network that it connects to."""

    device: int  # of the interface
    interface: Interface
    network: Network  # that of the other end where a link has two ends


class Route(NamedTuple):
    """A unicast route. On a route without a gateway the destination itself is a neighbour."""

    prefix: Network
    metric: int
    device: int = 0  # of the interface; 0: of several
    gateway: IPAddress | None = None
    source: IPAddress | None = None  # address that packets of this host get
    protocol: int = ROUTE_PROTOCOL
    is_local: bool = False  # it leads to this host itself
    is_by_rule: bool = False  # of a table that a rule names (ip-rule(8)): routes of the main table do not matter
    table: int = MAIN_TABLE  # of a route of ours
    is_fence: bool = False  # of ours: it leads nowhere
    is_gap: bool = False  # of ours: the rules behind decide


def contains(network: Network, address: IPAddress) -> bool:
    return network.version == address.version and address in network


def is_within(network: Network, whole: Network) -> bool:
    """Whether a network is another one or lies inside it."""
    return network.prefixlen >= whole.prefixlen and contains(whole, network.network_address)


def is_within_any(network: Network, wholes: Iterable[Network]) -> bool:
    return any(is_within(network, whole) for whole in wholes)


def share(one: Network, other: Network) -> bool:
    """Whether two networks have an address in common: then one lies inside the other."""
    return is_within(one, other) or is_within(other, one)
