"""The kernel's answer to: how would a connection to this address leave the machine? No packet is sent for it.

    KernelRoutes.find       RTM_GETROUTE (rtnetlink(7)) for TCP to a port, with the rules for our own user id, or for
                            that of another process; by any interface or a certain one, as SO_BINDTODEVICE does; from
                            any address or a certain one
    KernelRoutes.link       whether an interface is there, and has a carrier
    KernelRoutes.has        whether an interface has an address
    KernelRoutes.neighbour  the link address of a neighbour, if it is known
    is_ours                 whether an address is on any interface of this machine
    RouteNews               whether the kernel has told of any change

None needs a right. An answer is that of one moment, so it is asked for again and again. That takes a quarter of a
millisecond, and less often where nothing changes. Events say that something did, and nothing else depends on them: they
come in floods on a machine with many routes, and then some are lost.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.policy.server_addresses import ServerAddress
from pipeline.policy.underlay import Way

# linux/netlink.h, linux/rtnetlink.h
RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 20, 22, 24, 26
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
NDA_DST, NDA_LLADDR = 1, 2  # linux/neighbour.h
NUD_UNUSABLE = 0x21  # NUD_INCOMPLETE, NUD_FAILED
RTN_UNICAST, RTN_LOCAL = 1, 2
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_VIA, RTA_UID = 1, 2, 4, 5, 7, 18, 25
RTA_IP_PROTO, RTA_DPORT = 27, 29
RTM_F_FIB_MATCH = 0x2000

SIOCGIFFLAGS = 0x8913  # linux/sockios.h
IFF_UP, IFF_RUNNING = 0x1, 0x40  # linux/if.h: it is switched on; it also has a carrier

NEWS_OF = (1, 5, 7, 8, 9, 11, 19, 32)
"""RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE and _NEXTHOP."""

NEWS_BYTES = 4096  # of unread events: they are read to the last, and say no more than that there were some
ANSWER_BYTES = 65536
NOBODY_HAS_IT = (errno.EADDRNOTAVAIL, errno.ENODEV)

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_OF_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # struct ndmsg


class RouteAnswer(NamedTuple):
    """The way of packets to an address, None if there is none; the name of its interface; the address that they get."""

    way: Way | None
    interface: str = ""
    source: bytes = b""


class Link(NamedTuple):
    """An interface. `device`: its index, 0 if there is none of that name."""

    device: int
    up: bool = False
    running: bool = False  # it also has a carrier


class RouteNews:
    """A netlink socket that hears of links, addresses, routes and rules. OSError if the system has no such thing."""

    def __init__(self) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NEWS_BYTES)
            self._netlink.bind((0, sum(1 << group - 1 for group in NEWS_OF)))
        except OSError:
            self._netlink.close()
            raise

    def close(self) -> None:
        self._netlink.close()

    @property
    def fd(self) -> int:
        """Readable when there is news."""
        return self._netlink.fileno()

    def take(self) -> bool:
        """Whether there is any since the last call."""
        found = False
        while True:
            try:
                self._netlink.recv(1)  # the rest of a message goes with it
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # there was more than the buffer holds
                    return True
            found = True


class KernelRoutes:
    """One netlink socket, and one for ioctl(2). OSError if the system has no netlink. `uid`: of the process whose ways
    they are; None: of this one."""

    def __init__(self, uid: int | None = None) -> None:
        self._sequence = 0
        self._sender = b"" if uid is None else _attribute(RTA_UID, uid.to_bytes(4, "little"))
        self._links = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            self._netlink.bind((0, 0))
        except OSError:
            self._links.close()
            raise

    def close(self) -> None:
        self._netlink.close()
        self._links.close()

    def find(self, address: ServerAddress, device: int = 0, source: bytes = b"") -> RouteAnswer:
        """Ask for the way to an address. `device`: the interface that a socket is bound to; 0: the routes decide.
        `source`: the address that it is bound to; b"": the routes decide."""
        if device and address.family == socket.AF_INET and not self._is_routed(address, device):
            return RouteAnswer(None)
        answer = self._ask(self._request(address, device, source=source))
        found, gateway, source = _parse(answer)
        if not found or device not in (0, found):
            return RouteAnswer(None)
        try:
            interface = socket.if_indextoname(found)
        except OSError:
            interface = ""  # it has just been deleted
        return RouteAnswer(Way(found, gateway, self.link(interface).running), interface, source)

    def _is_routed(self, address: ServerAddress, device: int) -> bool:
        """Whether there is a route by this interface. Without one, the kernel takes the address to be on the link."""
        return _leads_somewhere(self._ask(self._request(address, device, RTM_F_FIB_MATCH)))

    def link(self, name: str) -> Link:
        """The state of an interface."""
        try:
            answer = fcntl.ioctl(self._links, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
            flags = struct.unpack_from("16xH", answer)[0]
            return Link(socket.if_nametoindex(name), bool(flags & IFF_UP), bool(flags & IFF_RUNNING))
        except OSError:
            return Link(0)

    def has(self, device: int, address: bytes) -> bool:
        """Whether this interface has the address."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        body = _OF_ADDRESS.pack(socket.AF_INET if len(address) == 4 else socket.AF_INET6, 0, 0, 0, 0)
        request = _HEADER.pack(_HEADER.size + len(body), RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0)
        answer, found, is_last = self._ask(request + body), False, False
        while answer and not is_last:  # the next question has to wait for the last part
            has_it, is_last = _has(answer, device, address)
            found = found or has_it
            answer = self._receive() if not is_last else b""
        return found

    def neighbour(self, device: int, address: bytes) -> bytes:
        """The link address of a neighbour on this interface; b"" if the kernel has none now."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        body = _NEIGHBOUR.pack(family, device, 0, 0, 0) + _attribute(NDA_DST, address)
        answer = self._ask(
            _HEADER.pack(_HEADER.size + len(body), RTM_GETNEIGH, NLM_F_REQUEST, self._sequence, 0) + body
        )
        if len(answer) < _HEADER.size + _NEIGHBOUR.size or _HEADER.unpack_from(answer)[1] != RTM_NEWNEIGH:
            return b""
        if _NEIGHBOUR.unpack_from(answer, _HEADER.size)[2] & NUD_UNUSABLE:
            return b""
        return dict(_attributes(answer, _HEADER.size + _NEIGHBOUR.size)).get(NDA_LLADDR, b"")

    def _ask(self, request: bytes) -> bytes:
        """The answer; b"" for want of memory: it is asked for again soon."""
        try:
            self._netlink.send(request)
        except OSError:
            return b""
        return self._receive()

    def _receive(self) -> bytes:
        """The next answer to the last question."""
        try:
            while True:
                answer = self._netlink.recv(ANSWER_BYTES)
                if _HEADER.unpack_from(answer)[3] == self._sequence:
                    return answer
        except OSError:
            return b""

    def _request(self, address: ServerAddress, device: int = 0, flags: int = 0, source: bytes = b"") -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        destination = socket.inet_pton(address.family, address.host.partition("%")[0])
        attributes = _attribute(RTA_DST, destination) + self._sender
        attributes += _attribute(RTA_IP_PROTO, bytes([socket.IPPROTO_TCP]))
        attributes += _attribute(RTA_DPORT, address.sockaddr[1].to_bytes(2, "big"))
        device = device or address.zone
        if device:
            attributes += _attribute(RTA_OIF, device.to_bytes(4, "little"))
        if source:
            attributes += _attribute(RTA_SRC, source)
        body = _ROUTE.pack(address.family, 8 * len(destination), 8 * len(source), 0, 0, 0, 0, 0, flags) + attributes
        return _HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, self._sequence, 0) + body


def is_ours(sockaddr: tuple[str | int, ...]) -> bool:
    """Whether this machine has the address. `sockaddr`: of a local end, as getsockname() gives it."""
    family = socket.AF_INET6 if len(sockaddr) == 4 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind((sockaddr[0], 0, *sockaddr[2:]))
    except OSError as error:
        return error.errno not in NOBODY_HAS_IT
    return True


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _attributes(message: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message from an offset on, until one is cut off."""
    while at + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind, message[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3


def _leads_somewhere(answer: bytes) -> bool:
    """Whether an answer is an RTM_NEWROUTE with a way, and not an error or a route that forbids."""
    if len(answer) < _HEADER.size + _ROUTE.size or _HEADER.unpack_from(answer)[1] != RTM_NEWROUTE:
        return False
    return _ROUTE.unpack_from(answer, _HEADER.size)[7] in (RTN_UNICAST, RTN_LOCAL)


def _parse(answer: bytes) -> tuple[int, bytes, bytes]:
    """Interface index, gateway and source of an RTM_NEWROUTE; 0 for a route that leads nowhere, and other answers."""
    if not _leads_somewhere(answer):
        return 0, b"", b""
    device, gateway, source = 0, b"", b""
    for kind, value in _attributes(answer, _HEADER.size + _ROUTE.size):
        if kind == RTA_OIF:
            device = int.from_bytes(value, "little")
        elif kind in (RTA_GATEWAY, RTA_VIA):
            gateway = value
        elif kind == RTA_PREFSRC:
            source = value
    return device, gateway, source


def _has(answer: bytes, device: int, address: bytes) -> tuple[bool, bool]:
    """Whether a part of a list of addresses has that one of that interface, and whether it is the last part."""
    at, found = 0, False
    while at + _HEADER.size <= len(answer):
        size, kind = _HEADER.unpack_from(answer, at)[:2]
        if kind != RTM_NEWADDR or size < _HEADER.size + _OF_ADDRESS.size:
            return found, True
        message = answer[at : at + size]
        values = {value for _, value in _attributes(message, _HEADER.size + _OF_ADDRESS.size)}
        found = found or (address in values and _OF_ADDRESS.unpack_from(message, _HEADER.size)[4] == device)
        at += (size + 3) & ~3
    return found, False
