"""The kernel's answer to: how would a connection to this address leave the machine? No packet is sent for it.

    KernelRoutes.find   RTM_GETROUTE (rtnetlink(7)) for TCP to a port, with the rules for our own user id
    is_ours             whether an address is on any interface of this machine
    RouteNews           whether the kernel has told of any change

None needs a right. An answer is that of one moment, so it is asked for again and again. That takes a quarter of a
millisecond, and less often where nothing changes. Events say that something did, and nothing else depends on them: they
come in floods on a machine with many routes, and then some are lost.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from typing import NamedTuple

from pipeline.policy.server_addresses import ServerAddress
from pipeline.policy.underlay import Way

# linux/netlink.h, linux/rtnetlink.h
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
NLMSG_ERROR = 2
NLM_F_REQUEST = 1
RTN_UNICAST, RTN_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA, RTA_IP_PROTO, RTA_DPORT = 1, 4, 5, 18, 27, 29

SIOCGIFFLAGS = 0x8913  # linux/sockios.h
IFF_RUNNING = 0x40  # linux/if.h: it is up, and has a carrier

NEWS_OF = (1, 5, 7, 8, 9, 11, 19, 32)
"""RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE and _NEXTHOP."""

NEWS_BYTES = 4096  # of unread events: they are read to the last, and say no more than that there were some
ANSWER_BYTES = 65536
NOBODY_HAS_IT = (errno.EADDRNOTAVAIL, errno.ENODEV)

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr


class RouteAnswer(NamedTuple):
    """The way of packets to an address, None if there is none; and the name of its interface."""

    way: Way | None
    interface: str = ""


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
    """One netlink socket, and one for ioctl(2). OSError if the system has no netlink."""

    def __init__(self) -> None:
        self._sequence = 0
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

    def find(self, address: ServerAddress) -> RouteAnswer:
        """Ask for the way to an address."""
        request = self._request(address)
        try:
            self._netlink.send(request)
            while True:
                answer = self._netlink.recv(ANSWER_BYTES)
                _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
                if sequence == self._sequence:
                    break
        except OSError:
            return RouteAnswer(None)  # for want of memory: it is asked for again soon
        if kind != RTM_NEWROUTE:
            return RouteAnswer(None)
        device, gateway = _parse(answer)
        if not device:
            return RouteAnswer(None)
        interface, running = self._link(device)
        return RouteAnswer(Way(device, gateway, running), interface)

    def _request(self, address: ServerAddress) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        destination = socket.inet_pton(address.family, address.host.partition("%")[0])
        attributes = _attribute(RTA_DST, destination)
        attributes += _attribute(RTA_IP_PROTO, bytes([socket.IPPROTO_TCP]))
        attributes += _attribute(RTA_DPORT, address.sockaddr[1].to_bytes(2, "big"))
        scope = address.sockaddr[3] if len(address.sockaddr) == 4 else 0
        if scope:
            attributes += _attribute(RTA_OIF, scope.to_bytes(4, "little"))
        body = _ROUTE.pack(address.family, 8 * len(destination), 0, 0, 0, 0, 0, 0, 0) + attributes
        return _HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, self._sequence, 0) + body

    def _link(self, device: int) -> tuple[str, bool]:
        try:
            name = socket.if_indextoname(device)
            answer = fcntl.ioctl(self._links, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        except OSError:
            return "", False  # it has just been deleted
        return name, bool(struct.unpack_from("16xH", answer)[0] & IFF_RUNNING)


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


def _parse(answer: bytes) -> tuple[int, bytes]:
    """Interface index and gateway of an RTM_NEWROUTE; 0 for a route that leads nowhere."""
    kind = _ROUTE.unpack_from(answer, _HEADER.size)[7]
    if kind not in (RTN_UNICAST, RTN_LOCAL):
        return 0, b""
    device, gateway = 0, b""
    at = _HEADER.size + _ROUTE.size
    while at + _ATTRIBUTE.size <= len(answer):
        size, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if size < _ATTRIBUTE.size:
            break
        value = answer[at + _ATTRIBUTE.size : at + size]
        if attribute == RTA_OIF:
            device = int.from_bytes(value, "little")
        elif attribute in (RTA_GATEWAY, RTA_VIA):
            gateway = value
        at += (size + 3) & ~3
    return device, gateway
