"""The UDP socket of a lane, as the inbound duty has it: many segments with one receive, and control datagrams out.

    receive     segments of one sender, that came one behind the other, in `memory`
    send        one datagram

With UDP_GRO the kernel puts datagrams of one flow together, and says how long each is; the last one may be shorter.
Beside them it says to which address they were sent, how they are marked (ECN), and when they came. On a busy machine
they wait for this process much longer than they were under way. A round trip must not have that time in it.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import Any

from pipeline.policy.return_address import Address
from workers.dgram.path import Ancillary

SOL_UDP, UDP_GRO = 17, 104  # linux/udp.h
SO_TIMESTAMPNS = 35  # asm-generic/socket.h
IP_TOS, IP_PKTINFO = 1, 8  # linux/in.h
IPV6_PKTINFO, IPV6_TCLASS = 50, 67  # linux/in6.h
_SOCKET = int(socket.SOL_SOCKET)
_IP, _IPV6 = int(socket.IPPROTO_IP), int(socket.IPPROTO_IPV6)
_TRUNCATED = int(socket.MSG_TRUNC)

MEMORY_BYTES = 1 << 16
WAITED_MOST_NS = 1_000_000_000  # more than that is a step of the clock
_ANCILLARY_BYTES = socket.CMSG_SPACE(4) * 2 + socket.CMSG_SPACE(20) + socket.CMSG_SPACE(16)
_MAPPED = "::ffff:"
_ECN, _CE = 3, 3  # RFC 3168, 5

_SIZE = struct.Struct("=i")
_TIME = struct.Struct("@ll")
_PKTINFO4 = struct.Struct("=i4s4s")  # interface, address to answer from, address in the header
_PKTINFO6 = struct.Struct("=16si")


class DatagramSocket:
    """`fd`: it is the socket's from now on.

    Of the latest receive: `size` in all, `segment_bytes` of each but the last, `source`, `is_marked` with ECN-CE, and
    `waited_ns`, since it came to this machine.
    """

    opened = 0  # flows: it has none

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.family = self.socket.family
        self.memory = memoryview(bytearray(MEMORY_BYTES))
        self._into = [self.memory]
        self._local: tuple[int, bytes] | None = None
        self.size = self.segment_bytes = 0
        self.source: tuple[Any, ...] = ()
        self.is_marked = False
        self.waited_ns = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self) -> bool:
        """False if nothing is there, or if the network has only told an error."""
        try:
            size, ancillary, flags, self.source = self.socket.recvmsg_into(self._into, _ANCILLARY_BYTES)
        except OSError as error:
            self.size = 0
            return error.errno not in (errno.EAGAIN, errno.ENOMEM)  # an error of a route or a host: there may be more
        self.size = self.segment_bytes = 0 if flags & _TRUNCATED else size
        self.is_marked = False
        for level, kind, data in ancillary:
            if kind == UDP_GRO and level == SOL_UDP:
                self.segment_bytes = _SIZE.unpack(data)[0]
            elif (kind == IP_TOS and level == _IP) or (kind == IPV6_TCLASS and level == _IPV6):
                self.is_marked = data[0] & _ECN == _CE
            elif kind == SO_TIMESTAMPNS and level == _SOCKET:
                seconds, rest = _TIME.unpack(data)
                waited = time.time_ns() - seconds * 1_000_000_000 - rest
                self.waited_ns = waited if 0 < waited < WAITED_MOST_NS else 0
            elif kind in (IP_PKTINFO, IPV6_PKTINFO):
                self._local = level, data
        return True

    def source_address(self) -> Address:
        """Of the latest receive. An address of IPv4 looks like one, whatever the family of the socket."""
        host, port, *rest = self.source
        if host.startswith(_MAPPED):
            host = host.removeprefix(_MAPPED)
        return Address(f"{host}%{rest[1]}" if len(rest) == 2 and rest[1] else host, port)

    @property
    def interface(self) -> int:
        """The number of the one by which the latest receive has come; 0: not known."""
        if self._local is None:
            return 0
        level, data = self._local
        return int(_PKTINFO4.unpack(data)[0] if level == _IP else _PKTINFO6.unpack(data)[1])

    def answer_ancillary(self) -> Ancillary:
        """With this, what is sent goes out from the address to which the latest receive was sent."""
        if self._local is None:
            return []
        level, data = self._local
        if level == _IP:
            return [(_IP, IP_PKTINFO, _PKTINFO4.pack(0, _PKTINFO4.unpack(data)[1], bytes(4)))]
        host, interface = _PKTINFO6.unpack(data)
        is_of_link = host[0] == 0xFE and host[1] & 0xC0 == 0x80
        return [(_IPV6, IPV6_PKTINFO, _PKTINFO6.pack(host, interface if is_of_link else 0))]

    def address_of(self, host: bytes, port: int, scope: int) -> tuple[Any, ...] | None:
        """As sendmsg takes it, for an IPv6 address or one of IPv4 mapped into it; None: this socket does not get
        there."""
        if self.family == socket.AF_INET6:
            return socket.inet_ntop(socket.AF_INET6, host), port, 0, scope
        if host[:12] != b"\0" * 10 + b"\xff\xff":
            return None
        return socket.inet_ntop(socket.AF_INET, host[12:]), port

    def send(self, datagram: memoryview, address: tuple[Any, ...], ancillary: Ancillary) -> int:
        """0, or the error."""
        try:
            self.socket.sendmsg([datagram], ancillary, 0, address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def reaches(self, address: tuple[Any, ...]) -> bool:
        return True

    def begin(self) -> None: ...

    def rest(self, now: int) -> None: ...

    def doubt(self) -> None: ...

    def tick(self, now: int) -> None: ...

    def close(self) -> None:
        self.socket.close()
