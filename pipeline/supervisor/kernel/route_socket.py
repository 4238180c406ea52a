"""The sockets on which the supervisor talks with the kernel about links, addresses, routes and rules (NETLINK_ROUTE).

    RouteSocket    requests, one at a time; a refusal is a value
    RouteEvents    news of changes that anybody makes

The kernel drops news that nobody reads in time. That is known (`lost`), and a look at the kernel makes up for it.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from pipeline.errors import LocalError
from pipeline.policy.bypass import Rule
from pipeline.policy.kernel_entries import MAIN_TABLE, Address, Interface, IPAddress, Link, Network, Route
from pipeline.supervisor.kernel import rtnetlink as rt
from pipeline.supervisor.kernel.rtnetlink import Message, Refusal, Sender

SOL_NETLINK = 270  # linux/socket.h
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12  # linux/netlink.h; strict: a dump is filtered
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40  # linux/rtnetlink.h
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTMGRP_IPV6_IFINFO = 0x100, 0x400, 0x800
RTMGRP_IPV4_RULE, RTMGRP_IPV6_RULE = 0x80, 1 << 18
GROUPS = (
    (RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE | RTMGRP_IPV6_IFINFO)
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_RULE
)
RECEIVE_BYTES = 1 << 16
EVENT_BUFFER_BYTES = 1 << 17
"""Of news that wait, some 150 messages. More of them call for one look, whatever they say."""

READS_MAX = 300
"""Of one read(): news may come as fast as they are read."""

ANSWER_SECONDS = 5.0  # the kernel answers at once
DUMP_ATTEMPTS = 5  # of a table that changes while it is read


class RouteSocket:
    def __init__(self) -> None:
        self._socket = _open(0)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.settimeout(ANSWER_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    # -- changes; None: done

    def set_link(self, index: int, mtu: int, queue_packets: int, *, up: bool) -> Refusal | None:
        """Set MTU and queue length; `up`: and set the device up, without a link-local address."""
        if up:
            self._change(rt.RTM_NEWLINK, 0, rt.no_link_local_body(index))  # refused where there is no IPv6
        return self._change(rt.RTM_NEWLINK, 0, rt.set_link_body(index, mtu, queue_packets, up=up))

    def add_address(self, index: int, interface: Interface) -> Refusal | None:
        return self._change(rt.RTM_NEWADDR, rt.NLM_F_CREATE | rt.NLM_F_EXCL, rt.address_body(index, interface))

    def remove_address(self, index: int, interface: Interface) -> Refusal | None:
        return self._change(rt.RTM_DELADDR, 0, rt.address_body(index, interface))

    def add_route(self, route: Route) -> Refusal | None:
        """Refused with EEXIST if there is a route to this network with this metric, ours or another's."""
        return self._change(rt.RTM_NEWROUTE, rt.NLM_F_CREATE | rt.NLM_F_EXCL, rt.route_body(route))

    def remove_route(self, route: Route) -> Refusal | None:
        return self._change(rt.RTM_DELROUTE, 0, rt.route_body(route, deleted=True))

    def add_rule(self, version: int, rule: Rule) -> Refusal | None:
        return self._change(rt.RTM_NEWRULE, rt.NLM_F_CREATE, rt.rule_body(version, rule))

    def remove_rule(self, version: int, rule: Rule) -> Refusal | None:
        return self._change(rt.RTM_DELRULE, 0, rt.rule_body(version, rule))

    # -- looks

    def link(self, index: int) -> Link | None:
        found = [rt.decode(message) for message in self._ask(rt.RTM_GETLINK, 0, rt.get_link_body(index))]
        return next((each for each in found if isinstance(each, Link)), None)

    def addresses(self) -> list[Address]:
        """The addresses of all devices."""
        found = map(rt.decode, self._dump(rt.RTM_GETADDR, rt.get_addresses_body()))
        return [each for each in found if isinstance(each, Address)]

    def rules(self, version: int) -> list[Rule]:
        """The rules of our protocol, those of other instances as well."""
        found = map(rt.decode, self._dump(rt.RTM_GETRULE, rt.get_rules_body(version)))
        return [each for each in found if isinstance(each, Rule)]

    def routes(self, version: int, index: int, protocol: int, table: int = MAIN_TABLE) -> list[Route]:
        """Routes in a table that are of this protocol and go through this device; 0: through any, or none."""
        found = map(rt.decode, self._dump(rt.RTM_GETROUTE, rt.get_routes_body(version, index, protocol, table)))
        return [each for each in found if isinstance(each, Route)]

    def lookup(self, address: IPAddress, sender: Sender | None = None) -> Route | None:
        """The route that the kernel uses for this address; None if there is none."""
        found = [rt.decode(message) for message in self._ask(rt.RTM_GETROUTE, 0, rt.lookup_body(address, sender))]
        return next((each for each in found if isinstance(each, Route)), None)

    def route_to(self, network: Network) -> Route | None:
        """The route that the kernel uses for exactly this network, where its addresses show it."""
        for address in _probes(network):
            route = self.lookup(address)
            if route is not None and route.prefix == network:
                return route
        return None

    # -- one request and its answer

    def _change(self, kind: int, flags: int, body: bytes) -> Refusal | None:
        for message in self._exchange(kind, flags | rt.NLM_F_ACK, body):
            if message.kind == rt.NLMSG_ERROR:
                return rt.refusal(message)
        return None

    def _ask(self, kind: int, flags: int, body: bytes) -> list[Message]:
        return [each for each in self._exchange(kind, flags | rt.NLM_F_ACK, body) if each.kind != rt.NLMSG_ERROR]

    def _dump(self, kind: int, body: bytes) -> list[Message]:
        found: list[Message] = []
        for _ in range(DUMP_ATTEMPTS):
            found = self._exchange(kind, rt.NLM_F_DUMP, body)
            if not any(message.flags & rt.NLM_F_DUMP_INTR for message in found):
                break
        return found

    def _exchange(self, kind: int, flags: int, body: bytes) -> list[Message]:
        """All messages of the answer, up to the one that ends it."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        found: list[Message] = []
        try:
            self._socket.send(rt.request(kind, flags, self._sequence, body))
            while True:
                for message in rt.split(self._socket.recv(RECEIVE_BYTES)):
                    if message.sequence != self._sequence:
                        continue  # the rest of an answer that was given up
                    found.append(message)
                    if message.kind in (rt.NLMSG_ERROR, rt.NLMSG_DONE):
                        return found
        except OSError as error:
            raise LocalError(f"the kernel's routing tables cannot be read: {error.strerror or error}") from None


class News(NamedTuple):
    """Changes since the last read."""

    events: list[Message]
    lost: bool  # there were more


class RouteEvents:
    def __init__(self) -> None:
        self._socket = _open(GROUPS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
        self._socket.setblocking(False)

    def read(self) -> News:
        events: list[Message] = []
        lost = False
        for _ in range(READS_MAX):
            try:
                events += rt.split(self._socket.recv(RECEIVE_BYTES))
            except BlockingIOError:
                return News(events, lost)
            except OSError:  # ENOBUFS
                lost = True
        return News(events, True)

    def close(self) -> None:
        self._socket.close()


def _open(groups: int) -> socket.socket:
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        made.bind((0, groups))
    except OSError as error:
        raise LocalError(f"netlink: {error.strerror}: this program needs it to set addresses and routes") from None
    return made


def _probes(network: Network) -> list[IPAddress]:
    """Some addresses of a network. A longer prefix seldom has all of them."""
    first, last = network.network_address, network.broadcast_address
    if network.prefixlen >= network.max_prefixlen - 1:
        return [first, last]
    size = network.num_addresses
    return [first + 1, first + size // 3, first + 2 * size // 3, last - 1]
