"""The addresses and routes that an instance wants, compared with those that the kernel has: what to do, and why not.

    plan(wanted, seen)    what to add and to remove, and a reason for each entry that is left out

Each entry is decided by itself; an entry that cannot be costs no other one. Rules:

- Everything of others stays. A route of ours is added beside another's to the same network, with a metric of its own.
  The better metric wins. Where that is the other's, a sentence says so.
- The way to the other end stays outside: an address on it (the server or a connected client, the gateway to it) is
  `protected`. No route of ours is longer than the route that leads there now.
- With a tunnel table (policy.bypass) this holds by itself: the routes of the configuration go there, whatever they
  name.
- A server cannot know where the next client comes from. So a route to a large part of the Internet waits for the first
  client, and a sentence says which clients can connect beside it.
- Entries that the server has sent (`pushed`) yield to every network that another device is connected to.
- Entries that the configuration asks for are made, with a sentence where they meet another device's network.

Nothing here reads the kernel or the clock, and nothing is remembered: see pipeline.supervisor.kernel.reconciler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_network
from typing import NamedTuple

from pipeline.policy.kernel_entries import (
    CONFIGURED_METRIC,
    MAIN_TABLE,
    PUSHED_METRIC,
    ROUTE_PROTOCOL,
    Address,
    Interface,
    IPAddress,
    Network,
    Route,
    contains,
    is_within,
    share,
)
from pipeline.policy.pushed import AcceptRoutes, is_large, sort_out, why_not_address

IPV6_OFF = "IPv6 is off"
ANOTHER_SUBNET = "choose another tunnel_addr on the server"
ONE_OF_TWO = "choose other networks for one of the two"
NETWORK_PAGE = "docs/network.md"
SEND_EVERYTHING = "To send everything through the tunnel, set full_tunnel here"


class FarEnd(StrEnum):
    """The other end of the connections, in words."""

    SERVER = "the server"
    CLIENT = "a client"


class Wanted(NamedTuple):
    """The wishes of the configuration, and those of the server."""

    addresses: tuple[Interface, ...] = ()
    routes: tuple[Network, ...] = ()
    pushed_addresses: tuple[Interface, ...] = ()
    pushed_routes: tuple[Network, ...] = ()
    accept_routes: AcceptRoutes = True
    behind_peers: tuple[Network, ...] = ()  # of a server: networks of its peers
    far_end: FarEnd = FarEnd.SERVER
    is_far_end_known: bool = True  # an address of it is protected
    tunnel_table: int | None = None  # for the routes of the configuration; None: the main table

    @property
    def prefixes(self) -> tuple[Network, ...]:
        """Every network that may be routed into the device."""
        subnets = [each.network for each in (*self.addresses, *self.pushed_addresses)]
        return tuple(dict.fromkeys((*self.routes, *subnets, *self.pushed_routes)))

    @property
    def entries(self) -> tuple[Interface | Network, ...]:
        return (*self.addresses, *self.pushed_addresses, *self.prefixes)


class Seen(NamedTuple):
    """The state of the kernel."""

    device: int  # of our device
    ipv6: bool  # IPv6 is on, on our device
    addresses: tuple[Address, ...]  # of all devices
    routes: tuple[Route, ...]  # through our device, with our protocol
    ways: Mapping[IPAddress, Route | None]  # to each protected address, as the kernel goes now
    rivals: Mapping[Network, Route]  # routes of others, to exactly a network of ours, that the kernel uses now
    names: Mapping[int, str]  # of devices


class Plan(NamedTuple):
    taken: frozenset[Interface | Network]  # entries that are to be there
    add_addresses: list[Interface]
    add_routes: list[Route]
    remove_addresses: list[Interface]  # on our device, not wanted; whether they are ours the caller knows
    remove_routes: list[Route]
    left_out: dict[Interface | Network, str]  # entries that are wanted, and why they are not there
    notes: dict[str, str]  # sentences about entries that are there, by what each is about


def plan(wanted: Wanted, seen: Seen) -> Plan:
    left_out: dict[Interface | Network, str] = {}
    addresses: list[Interface] = []
    for interface, pushed in _addresses(wanted):
        why = _why_not_address(interface, pushed, seen)
        if why:
            left_out[interface] = why
        else:
            addresses.append(interface)
    routes: list[Route] = []
    for route, pushed, why in _routes(wanted, addresses, seen.device):
        why = why or _why_not_route(route, pushed, wanted, seen)
        if why:
            left_out[route.prefix] = why
        else:
            routes.append(route)
    own = [each.interface for each in seen.addresses if each.device == seen.device]
    there = set(map(_identity, seen.routes))
    to_be = set(map(_identity, routes))
    return Plan(
        frozenset((*addresses, *(each.prefix for each in routes))),
        [each for each in addresses if each not in own],
        [each for each in routes if _identity(each) not in there],
        [each for each in own if each not in addresses],
        [each for each in seen.routes if _identity(each) not in to_be],
        left_out,
        dict(
            (
                *_overlaps(wanted, addresses, left_out, seen),
                *_shadows(routes, seen),
                *_exclusions(routes, wanted),
                *_loops(seen),
            )
        ),
    )


def asked(wanted: Wanted) -> tuple[Network, ...]:
    """The routes that the configuration asks for, itself or by a name in accept_routes."""
    named = () if isinstance(wanted.accept_routes, bool) else wanted.accept_routes
    return tuple(dict.fromkeys((*wanted.routes, *(each for each in wanted.pushed_routes if each in named))))


def _identity(route: Route) -> tuple[object, ...]:
    return route.prefix, route.metric, route.source, route.table


def _addresses(wanted: Wanted) -> Iterator[tuple[Interface, bool]]:
    yield from ((each, False) for each in wanted.addresses)
    yield from ((each, True) for each in wanted.pushed_addresses if each not in wanted.addresses)


def _routes(wanted: Wanted, addresses: list[Interface], device: int) -> Iterator[tuple[Route, bool, str]]:
    """Every route that is wanted, once, whether the server alone wants it, and why it is not accepted."""
    seen: set[Network] = set()
    for interface in addresses:
        prefix = interface.network
        if prefix.prefixlen < prefix.max_prefixlen and prefix not in seen:
            seen.add(prefix)
            pushed = interface not in wanted.addresses and prefix not in wanted.routes
            why = sort_out([prefix], True, ()).refused.get(prefix, "") if pushed else ""
            metric = PUSHED_METRIC if pushed else CONFIGURED_METRIC
            yield Route(prefix, metric, device, source=interface.ip), pushed, why
    accept = wanted.accept_routes
    named = () if isinstance(accept, bool) else accept
    sorted_out = sort_out(wanted.pushed_routes, accept, {*wanted.routes, *named})
    table = MAIN_TABLE if wanted.tunnel_table is None else wanted.tunnel_table
    for prefix in asked(wanted):
        if prefix not in seen:
            seen.add(prefix)
            yield Route(prefix, CONFIGURED_METRIC, device, table=table), False, ""
    for prefix in (*sorted_out.taken, *sorted_out.refused):
        if prefix not in seen:
            seen.add(prefix)
            yield Route(prefix, PUSHED_METRIC, device), True, sorted_out.refused.get(prefix, "")


# -- why an entry is left out


def _why_not_address(interface: Interface, pushed: bool, seen: Seen) -> str:
    if interface.version == 6 and not seen.ipv6:
        return IPV6_OFF
    if not pushed:
        return ""
    if why := why_not_address(interface.ip):
        return why
    if interface.ip in seen.ways:
        return "it is on the way to the server"
    other = _connected(ip_network(interface.ip), seen)
    return f"it is in {_of(other, seen)}: {ANOTHER_SUBNET}" if other else ""


def _why_not_route(route: Route, pushed: bool, wanted: Wanted, seen: Seen) -> str:
    prefix = route.prefix
    if prefix.version == 6 and not seen.ipv6:
        return IPV6_OFF
    if route.table != MAIN_TABLE:
        return ""  # the connections to the server take no route of ours
    if not wanted.is_far_end_known and route.source is None:
        if wanted.far_end is FarEnd.SERVER:
            return "it waits until the server's address is known"
        if is_large(prefix):
            return "it waits until a client is connected. It would lead the answers to most clients into the tunnel"
    if pushed and (other := _connected(prefix, seen)):
        return f"it would cover {_of(other, seen)}"
    for address, way in seen.ways.items():
        if contains(prefix, address) and (why := _why_not_over(address, way, route, pushed, wanted, seen)):
            return why
    rival = seen.rivals.get(prefix)
    if rival is not None and rival.metric == route.metric:
        return f"{prefix} {_hop(rival, seen)} is there with metric {rival.metric}, and stays; {ONE_OF_TWO}"
    return ""


def _why_not_over(address: IPAddress, way: Route | None, route: Route, pushed: bool, wanted: Wanted, seen: Seen) -> str:
    """Why a route that contains a protected address would lead the way to it into the tunnel; "" if it would not."""
    far_end = wanted.far_end
    if way is None:
        return f"it leads to {address}, which is on the way to {far_end}, and no other route leads there now"
    if way.is_local or (way.is_by_rule and way.device != seen.device):
        return ""
    is_around = way.device != seen.device
    if is_around and way.prefix.prefixlen > route.prefix.prefixlen:
        return ""
    if is_around and way.prefix == route.prefix and way.metric <= route.metric:
        return ""
    if pushed:
        return f"it leads to {far_end} itself ({address}). {SEND_EVERYTHING}"
    hop = _hop(way, seen) if is_around else "via GATEWAY"
    return f"it leads to {far_end} itself ({address}). Give {far_end} a way around: ip route add {address} {hop}"


def _connected(prefix: Network, seen: Seen) -> Address | None:
    """The network of another device of which a network is a part, the smallest one."""
    others = [each for each in seen.addresses if each.device != seen.device and is_within(prefix, each.network)]
    return max(others, key=lambda each: each.network.prefixlen, default=None)


def _disputes(other: Network, own: Network) -> bool:
    """Whether both have an address. A part of an IPv6 network on the link may be ours: a hub answers there for it."""
    is_cut_out = own.version == 6 and own.prefixlen > other.prefixlen
    return share(own, other) and not is_cut_out


# -- sentences about what is there


def _overlaps(
    wanted: Wanted, addresses: list[Interface], left_out: Mapping[Interface | Network, str], seen: Seen
) -> Iterator[tuple[str, str]]:
    """Networks of ours that other devices have as well."""
    others = [each for each in seen.addresses if each.device != seen.device]
    for interface in addresses:
        other = next((each for each in others if _disputes(each.network, interface.network)), None)
        if other and interface.network not in left_out:
            cure = "choose another tunnel_addr" if interface in wanted.addresses else ANOTHER_SUBNET
            what = f"tunnel_addr {interface} overlaps {_of(other, seen)}"
            yield what, f"{what}: an address in both is reached through one of them alone; {cure}"
    own = [each.network for each in addresses]
    for name, prefixes in (("routes", wanted.routes), ("allowed", wanted.behind_peers)):
        for prefix in prefixes:
            other = _connected(prefix, seen)
            if other and prefix not in own and prefix not in seen.rivals:
                what = f"{name} has {prefix}, which is part of {_of(other, seen)}"
                yield what, f"{what}: this host reaches it through one of them alone; {ONE_OF_TWO}"


def _shadows(routes: list[Route], seen: Seen) -> Iterator[tuple[str, str]]:
    """Routes of ours that the kernel does not use, because another's to the same network has a better metric."""
    for route in routes:
        rival = seen.rivals.get(route.prefix) if route.table == MAIN_TABLE else None
        if rival is not None and rival.metric < route.metric:
            what = f"route {route.prefix} into the tunnel has no effect"
            theirs = f"{route.prefix} {_hop(rival, seen)} has the better metric {rival.metric}, and stays"
            yield what, f"{what}: {theirs}. To prefer the tunnel, {_preference(route)}"


def _exclusions(routes: list[Route], wanted: Wanted) -> Iterator[tuple[str, str]]:
    """Routes of a server beside which most clients cannot connect."""
    for route in routes:
        if wanted.far_end is FarEnd.CLIENT and route.source is None and is_large(route.prefix):
            what = f"route {route.prefix} leads the answers to most clients into the tunnel"
            yield what, f"{what}: only a client to which a longer route or a rule leads can connect ({NETWORK_PAGE})"


def _loops(seen: Seen) -> Iterator[tuple[str, str]]:
    """Routes of others that lead the connections to the server into the tunnel."""
    for address, way in seen.ways.items():
        if way is not None and way.device == seen.device and way.protocol != ROUTE_PROTOCOL and not way.is_local:
            what = f"the way to {address} leads into the tunnel itself"
            hop = f"dev {seen.names.get(way.device, '?')}"
            yield what, f"{what}, by a route of others: no connection lasts. Remove it: ip route del {way.prefix} {hop}"


def _preference(route: Route) -> str:
    if route.metric == PUSHED_METRIC:
        return "list it in routes"
    metric = f"give that route a metric above {route.metric}"
    if route.prefix.prefixlen == route.prefix.max_prefixlen:
        return metric
    return f"{metric}, or list both halves in routes: {', '.join(map(str, route.prefix.subnets(1)))}"


def _of(address: Address, seen: Seen) -> str:
    return f"{address.network} of {seen.names.get(address.device, f'device {address.device}')}"


def _hop(route: Route, seen: Seen) -> str:
    """As ip(8) takes it."""
    via = f"via {route.gateway} " if route.gateway is not None else ""
    return f"{via}dev {seen.names.get(route.device, '?')}"
