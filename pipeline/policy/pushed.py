"""The part of a server's addresses and routes that a client takes, judged by themselves.

`reconcile` judges them against the networks that the client is in.

    accept_routes    taken
    true             every network that is harmless
    false            none
    a list           networks that lie in a listed one. A network that the list names itself counts as configured

Never taken is a network that touches loopback, link-local, multicast or reserved addresses. Without a list, the public
networks of one server may together hold up to eight /8 of IPv4 and one /16 of IPv6. So no server draws the traffic of
a whole machine to itself, in one route or in many pieces, unless the client's configuration asks for that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_network
from typing import NamedTuple

from pipeline.policy.kernel_entries import IPAddress, Network, contains, is_within, is_within_any, share

AcceptRoutes = bool | tuple[Network, ...]

SPECIAL: dict[str, tuple[Network, ...]] = {
    "loopback": (ip_network("127.0.0.0/8"), ip_network("::1")),
    "link-local": (ip_network("169.254.0.0/16"), ip_network("fe80::/10")),
    "multicast": (ip_network("224.0.0.0/4"), ip_network("ff00::/8")),
    "reserved": (ip_network("0.0.0.0/8"), ip_network("240.0.0.0/4"), ip_network("::/128"), ip_network("::ffff:0:0/96")),
}
"""Addresses that mean something else on each host or link: RFC 6890."""

PRIVATE: tuple[Network, ...] = (
    ip_network("10.0.0.0/8"),
    ip_network("172.16.0.0/12"),
    ip_network("192.168.0.0/16"),
    ip_network("100.64.0.0/10"),
    ip_network("fc00::/7"),
)
"""Networks that are nobody's on the Internet: RFC 1918, RFC 6598, RFC 4193."""

PUBLIC_ADDRESSES_MAX = {4: 1 << 27, 6: 1 << 112}
"""By IP version. A sixteenth of the public addresses of IPv4; in IPv6 less than any registry has."""

TOO_LARGE = (
    "it leads too large a part of the Internet into the tunnel. To have that, list it in accept_routes, and give the "
    "server a route around the tunnel"
)


class Sorted(NamedTuple):
    taken: tuple[Network, ...]
    refused: dict[Network, str]  # why not


def sort_out(routes: Iterable[Network], accept: AcceptRoutes, asked: Collection[Network]) -> Sorted:
    """`asked`: networks that the client's own configuration names; they are taken whatever they touch."""
    taken: list[Network] = []
    refused: dict[Network, str] = {}
    left = dict(PUBLIC_ADDRESSES_MAX)
    for route in sorted(set(routes), key=lambda each: (each.version, -each.prefixlen, int(each.network_address))):
        is_counted = accept is True and route not in asked and not is_within_any(route, PRIVATE)
        why = "" if route in asked else _not_accepted(route, accept) or _special(route, is_within)
        if not why and is_counted and route.num_addresses > left[route.version]:
            why = TOO_LARGE
        if not why and route not in asked:
            why = _special(route, share)
        if why:
            refused[route] = why
            continue
        taken.append(route)
        if is_counted:
            left[route.version] -= route.num_addresses
    return Sorted(tuple(taken), refused)


def is_large(network: Network) -> bool:
    """Whether a network is a larger part of the Internet than a server may have."""
    return not is_within_any(network, PRIVATE) and network.num_addresses > PUBLIC_ADDRESSES_MAX[network.version]


def why_not_address(address: IPAddress) -> str:
    """Why a client takes no such address from its server; "" if it may."""
    for name, networks in SPECIAL.items():
        if any(contains(network, address) for network in networks):
            return f"it is a {name} address"
    return ""


def _not_accepted(route: Network, accept: AcceptRoutes) -> str:
    if accept is False:
        return "accept_routes is false"
    if accept is not True and not is_within_any(route, accept):
        return "it lies in none of accept_routes"
    return ""


def _special(route: Network, meets: Callable[[Network, Network], bool]) -> str:
    for name, networks in SPECIAL.items():
        if any(meets(route, each) for each in networks):
            return f"it holds {name} addresses"
    return ""
