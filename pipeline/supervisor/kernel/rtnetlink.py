"""rtnetlink in bytes: requests about links, addresses, routes and rules, and what the kernel answers. Pure.

    request(...)          one message for the kernel
    split(data)           the messages of a datagram; total: what does not fit ends the datagram
    decode(message)       the Link, Address, Route or Rule in a message, or None for anything else

Why own code: pyroute2 0.9.7 costs the supervisor 160 ms at its start and 11 MB for good, beside 37 MB without. It makes
objects of every message, and a router has 100 000 foreign routes. ip(8) is a process for each look, and tells errors by
the number of a line. The formats below have not changed since Linux 2.2, those of rules since 4.17.

Sources: linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, fib_rules.h; man 7 netlink, rtnetlink.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from pipeline.policy.bypass import Action, Rule
from pipeline.policy.kernel_entries import (
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    Address,
    Interface,
    IPAddress,
    Link,
    Network,
    Route,
)

NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_DUMP_INTR = 0x10  # the table has changed during the dump
NLM_F_DUMP = 0x300
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

IFF_UP = 0x1
IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN, IFLA_AF_SPEC = 3, 4, 13, 26
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_VIA = 1, 2, 4, 5, 6, 7, 9, 18
RTA_TABLE, RTA_UID, RTA_IP_PROTO, RTA_SPORT = 15, 25, 27, 28
FRA_GOTO, FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_UID_RANGE = 4, 6, 10, 14, 15, 20
FRA_PROTOCOL = 21
RT_TABLE_UNSPEC, RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL = 0, 253, 254, 255
OWN_TABLES = {RT_TABLE_UNSPEC, RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL}  # of the kernel's own rules
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE, RTN_THROW = 1, 2, 7, 9
RTM_F_LOOKUP_TABLE = 0x1000  # answer with the table of the route; of IPv4 alone, since IPv6 always does
RTM_F_FIB_MATCH = 0x2000  # answer with the route, not with the way of one packet
NLMSGERR_ATTR_MSG = 1
NOT_SUPPRESSED = 0xFFFFFFFF
RULE_WORDS = (FRA_PRIORITY, FRA_TABLE, FRA_GOTO, FRA_FWMARK)

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")  # length, type
LINK = struct.Struct("=BxHiII")  # family, device type, index, flags, mask of flags that change
ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # family, prefix length, source length, tos, table, protocol, scope, type, flags
NEXT_HOP = struct.Struct("=HBBi")  # length, flags, hops, index
RULE = struct.Struct("=BBBBBxxBI")  # family, destination and source length, tos, table, action, flags
UID_RANGE = struct.Struct("=II")
WORD = struct.Struct("=I")
ERROR = struct.Struct("=i")

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}  # by IP version
ADDRESS_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}


class Message(NamedTuple):
    kind: int  # NLMSG_* or RTM_*
    flags: int
    sequence: int
    body: bytes


class Sender(NamedTuple):
    """A TCP socket, whose packets may go elsewhere than others by a rule (ip-rule(8))."""

    port: int = 0  # 0: any
    address: IPAddress | None = None  # None: any
    uid: int | None = None  # None: that of this process


class Refusal(NamedTuple):
    """The kernel has refused a request."""

    errno: int
    text: str


# -- requests


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def set_link_body(index: int, mtu: int, queue_packets: int, *, up: bool) -> bytes:
    """RTM_NEWLINK: MTU in bytes, length of the queue; `up`: and set it up, else leave it up or down."""
    flag = IFF_UP if up else 0
    return (
        LINK.pack(socket.AF_UNSPEC, 0, index, flag, flag)
        + _attribute(IFLA_MTU, WORD.pack(mtu))
        + _attribute(IFLA_TXQLEN, WORD.pack(queue_packets))
    )


def no_link_local_body(index: int) -> bytes:
    """RTM_NEWLINK: the device gets no IPv6 address of its own, so the kernel sends no packets of its own."""
    mode = _attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    return LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _attribute(IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode))


def get_link_body(index: int) -> bytes:
    return LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)


def address_body(index: int, interface: Interface) -> bytes:
    """RTM_NEWADDR or RTM_DELADDR. The kernel adds no route to the address's network, and looks for no duplicate."""
    packed = interface.ip.packed
    return (
        ADDRESS.pack(FAMILIES[interface.version], interface.network.prefixlen, 0, 0, index)
        + _attribute(IFA_LOCAL, packed)
        + _attribute(IFA_ADDRESS, packed)
        + _attribute(IFA_FLAGS, WORD.pack(IFA_F_NOPREFIXROUTE | (IFA_F_NODAD if interface.version == 6 else 0)))
    )


def get_addresses_body() -> bytes:
    """RTM_GETADDR, a dump: all addresses of all devices."""
    return ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


def route_body(route: Route, *, deleted: bool = False) -> bytes:
    """RTM_NEWROUTE or RTM_DELROUTE in the route's table."""
    kind = RTN_UNREACHABLE if route.is_fence else RTN_THROW if route.is_gap else RTN_UNICAST
    scope = RT_SCOPE_LINK if route.prefix.version == 4 and kind == RTN_UNICAST else RT_SCOPE_UNIVERSE
    length = route.prefix.prefixlen
    body = ROUTE.pack(
        *(FAMILIES[route.prefix.version], length, 0, 0, RT_TABLE_UNSPEC, route.protocol),
        *(RT_SCOPE_NOWHERE if deleted else scope, kind, 0),
    )
    body += _attribute(RTA_TABLE, WORD.pack(route.table))
    if length:
        body += _attribute(RTA_DST, route.prefix.network_address.packed)
    if route.source is not None and not deleted:
        body += _attribute(RTA_PREFSRC, route.source.packed)
    if kind == RTN_UNICAST:
        body += _attribute(RTA_OIF, WORD.pack(route.device))
    return body + _attribute(RTA_PRIORITY, WORD.pack(route.metric))


def get_routes_body(version: int, index: int, protocol: int, table: int = MAIN_TABLE) -> bytes:
    """RTM_GETROUTE, a dump: routes of this protocol through this device in a table. The kernel selects.

    `index` 0: through any device, or none."""
    body = ROUTE.pack(FAMILIES[version], 0, 0, 0, RT_TABLE_UNSPEC, protocol, 0, 0, 0)
    body += _attribute(RTA_TABLE, WORD.pack(table))
    return body + (_attribute(RTA_OIF, WORD.pack(index)) if index else b"")


def rule_body(version: int, rule: Rule) -> bytes:
    """RTM_NEWRULE or RTM_DELRULE."""
    body = RULE.pack(FAMILIES[version], 0, 0, 0, RT_TABLE_UNSPEC, rule.action, 0)
    body += _attribute(FRA_PRIORITY, WORD.pack(rule.priority)) + _attribute(FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))
    if rule.table:
        body += _attribute(FRA_TABLE, WORD.pack(rule.table))
    if rule.target:
        body += _attribute(FRA_GOTO, WORD.pack(rule.target))
    if rule.mark:
        body += _attribute(FRA_FWMARK, WORD.pack(rule.mark))
    if rule.uid is not None:
        body += _attribute(FRA_UID_RANGE, UID_RANGE.pack(rule.uid, rule.uid))
    if rule.suppress is not None:
        body += _attribute(FRA_SUPPRESS_PREFIXLEN, WORD.pack(rule.suppress))
    return body


def get_rules_body(version: int) -> bytes:
    """RTM_GETRULE, a dump: all rules of an IP version."""
    return RULE.pack(FAMILIES[version], 0, 0, 0, 0, 0, 0)


def lookup_body(address: IPAddress, sender: Sender | None = None) -> bytes:
    """RTM_GETROUTE: the one route that the kernel uses for this address; `sender`: for the packets of that sender."""
    bits = address.max_prefixlen
    source = sender.address if sender and sender.address and sender.address.version == address.version else None
    flags = RTM_F_FIB_MATCH | (RTM_F_LOOKUP_TABLE if address.version == 4 else 0)
    body = ROUTE.pack(FAMILIES[address.version], bits, bits if source else 0, 0, 0, 0, 0, 0, flags)
    body += _attribute(RTA_DST, address.packed)
    if source:
        body += _attribute(RTA_SRC, source.packed)
    if sender and sender.port:
        body += _attribute(RTA_IP_PROTO, bytes([socket.IPPROTO_TCP])) + _attribute(RTA_SPORT, sender.port.to_bytes(2))
    if sender and sender.uid is not None:
        body += _attribute(RTA_UID, WORD.pack(sender.uid))
    return body


def _attribute(kind: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(padding)


# -- answers and events


def split(data: bytes) -> Iterator[Message]:
    at = 0
    while len(data) - at >= HEADER.size:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if not HEADER.size <= length <= len(data) - at:
            return
        yield Message(kind, flags, sequence, data[at + HEADER.size : at + length])
        at += (length + 3) & ~3


def refusal(message: Message) -> Refusal | None:
    """Of an NLMSG_ERROR: why the request has failed; None: it is done."""
    if len(message.body) < ERROR.size:
        return None
    number = -ERROR.unpack_from(message.body)[0]
    if number <= 0:
        return None
    said = b""
    if message.flags & NLM_F_ACK_TLVS and len(message.body) >= ERROR.size + HEADER.size:
        length = HEADER.size if message.flags & NLM_F_CAPPED else HEADER.unpack_from(message.body, ERROR.size)[0]
        said = _attributes(message.body, ERROR.size + ((length + 3) & ~3)).get(NLMSGERR_ATTR_MSG, b"")
    text = said.rstrip(b"\0").decode("ascii", "replace").rstrip(".")
    return Refusal(number, text or os.strerror(number))


def decode(message: Message) -> Link | Address | Route | Rule | None:
    try:
        match message.kind:
            case 16 | 17:  # RTM_NEWLINK, RTM_DELLINK
                return _link(message.body)
            case 20 | 21:  # RTM_NEWADDR, RTM_DELADDR
                return _address(message.body)
            case 24 | 25:  # RTM_NEWROUTE, RTM_DELROUTE
                return _route(message.body)
            case 32 | 33:  # RTM_NEWRULE, RTM_DELRULE
                return _rule(message.body)
    except (ValueError, struct.error):
        pass  # a family that we do not know, or a message that is cut off
    return None


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = LINK.unpack_from(body)
    name = _attributes(body, LINK.size).get(IFLA_IFNAME, b"")
    return Link(index, name.rstrip(b"\0").decode(errors="replace"), bool(flags & IFF_UP))


def _address(body: bytes) -> Address | None:
    family, length, _, _, index = ADDRESS.unpack_from(body)
    found = _attributes(body, ADDRESS.size)
    if family not in ADDRESS_BITS or IFA_ADDRESS not in found:
        return None
    # on a link of two ends IFA_ADDRESS is the other end
    own = ip_interface((found.get(IFA_LOCAL, found[IFA_ADDRESS]), length))
    return Address(index, own, _network(family, found[IFA_ADDRESS], length))


def _route(body: bytes) -> Route | None:
    family, length, _, _, table, protocol, _, kind, _ = ROUTE.unpack_from(body)
    is_bare = kind in (RTN_UNREACHABLE, RTN_THROW) and protocol == ROUTE_PROTOCOL
    if family not in ADDRESS_BITS or (kind not in (RTN_UNICAST, RTN_LOCAL) and not is_bare):
        return None
    found = _attributes(body, ROUTE.size)
    if RTA_TABLE in found:
        table = WORD.unpack(found[RTA_TABLE])[0]
    prefix = _network(family, found.get(RTA_DST, b""), length)
    metric = WORD.unpack(found[RTA_PRIORITY])[0] if RTA_PRIORITY in found else 0
    hop = found
    index = WORD.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0
    if RTA_MULTIPATH in found:  # the first of several next hops stands for all
        size, _, _, index = NEXT_HOP.unpack_from(found[RTA_MULTIPATH])
        hop = _attributes(found[RTA_MULTIPATH][:size], NEXT_HOP.size)
    source = ip_address(found[RTA_PREFSRC]) if RTA_PREFSRC in found else None
    made = Route(prefix, metric, index, _gateway(hop), source, protocol, kind == RTN_LOCAL, table not in OWN_TABLES)
    if is_bare:  # IPv6 names a device
        bare = made._replace(device=0, table=table, is_by_rule=False)
        return bare._replace(is_fence=True) if kind == RTN_UNREACHABLE else bare._replace(is_gap=True)
    return made._replace(table=table) if protocol == ROUTE_PROTOCOL and made.is_by_rule else made


def _rule(body: bytes) -> Rule | None:
    """A rule of ours; those of others are no concern of ours."""
    *_, action, _ = RULE.unpack_from(body)
    found = _attributes(body, RULE.size)
    if found.get(FRA_PROTOCOL) != bytes([ROUTE_PROTOCOL]):
        return None
    words = {kind: WORD.unpack(found[kind])[0] for kind in RULE_WORDS if kind in found}
    suppress = WORD.unpack(found[FRA_SUPPRESS_PREFIXLEN])[0] if FRA_SUPPRESS_PREFIXLEN in found else NOT_SUPPRESSED
    return Rule(
        words.get(FRA_PRIORITY, 0),
        Action(action),
        words.get(FRA_TABLE, 0),
        words.get(FRA_GOTO, 0),
        words.get(FRA_FWMARK, 0),
        UID_RANGE.unpack(found[FRA_UID_RANGE])[0] if FRA_UID_RANGE in found else None,
        None if suppress == NOT_SUPPRESSED else suppress,
    )


def _network(family: int, packed: bytes, length: int) -> Network:
    whole = packed or bytes(ADDRESS_BITS[socket.AddressFamily(family)] // 8)
    return ip_network((whole, length), strict=False)


def _gateway(attributes: dict[int, bytes]) -> IPAddress | None:
    if RTA_GATEWAY in attributes:
        return ip_address(attributes[RTA_GATEWAY])
    via = attributes.get(RTA_VIA, b"")  # a gateway of the other IP version behind two bytes of family
    return ip_address(via[2:]) if via else None


def _attributes(data: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) - at >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if not ATTRIBUTE.size <= length <= len(data) - at:
            break
        found[kind & 0x3FFF] = data[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found
