"""The UDP sockets of an instance, one for each lane: the supervisor makes them, and they outlive workers.

Those of a server have the address and port of its listener. The kernel leads each pair of addresses to one of them, so
a client has a port for each lane. So datagrams wait in a socket while its worker is replaced.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

from pipeline.config import Config
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.policy import bypass
from pipeline.policy.carrier_order import KINDS, Kind
from pipeline.transport.address import format_address

BUFFER_BYTES = 8 << 20
"""13 ms at 5 Gbit/s: longer than a process waits for its core. The kernel doubles it for what it keeps beside data."""

# linux/in.h, linux/in6.h, linux/udp.h, asm-generic/socket.h; not in every version of the socket module
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE = 10, 23, 3
IP_PKTINFO, IP_RECVTOS = 8, 13
SOL_UDP, UDP_GRO = 17, 104
FORCED = {32: socket.SO_SNDBUF, 33: socket.SO_RCVBUF}  # SO_SNDBUFFORCE, SO_RCVBUFFORCE: beyond what the host allows

_ALWAYS = (
    (socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE),  # nothing is cut, and no ICMP message is believed
    (socket.IPPROTO_IP, IP_RECVTOS, 1),  # the mark of a queue (ECN)
    (SOL_UDP, UDP_GRO, 1),
)
_BY_FAMILY = {
    socket.AF_INET: ((socket.IPPROTO_IP, IP_PKTINFO, 1),),  # at which address of ours it has come
    socket.AF_INET6: (
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE),
        (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1),
        (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1),
    ),
}


class DatagramSockets:
    """`sockets`: by lane. OSError if they cannot be had. `listener`: of a server."""

    def __init__(self, config: Config, listener: socket.socket | None) -> None:
        self._mark = bypass.numbers(config.name).table
        self._is_marked = False
        with ExitStack() as made:
            if listener is None:
                self.sockets = [made.enter_context(_client_socket()) for _ in range(config.lanes)]
            else:
                self.sockets = [made.enter_context(each) for each in _server_sockets(listener, config.lanes)]
            for sock in self.sockets:
                _configure(sock)
            self._made = made.pop_all()

    def fds(self, lane: int) -> dict[str, int]:
        """Those that the dgram worker of a lane gets."""
        return {"datagrams": self.sockets[lane].fileno()}

    def places_towards(self, server: str) -> list[tuple[bytes, int]]:
        """Host of 16 bytes and port of each socket, as this machine names itself on its way to a server."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        try:
            with _new(family) as probe:
                if self._is_marked:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
                probe.connect((server.partition("%")[0], 9))  # nothing is sent
                host = probe.getsockname()[0]
        except OSError:
            return []
        address = socket.inet_pton(family, host)
        packed = address if family == socket.AF_INET6 else b"\0" * 10 + b"\xff\xff" + address
        return [(packed, sock.getsockname()[1]) for sock in self.sockets]

    def follow(self, has_bypass: bool) -> None:
        """Once a turn. With a bypass the mark leads around the tunnel: these sockets are not of the workers' user."""
        if has_bypass != self._is_marked:
            self._is_marked = has_bypass
            for sock in self.sockets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark if has_bypass else 0)

    def close(self) -> None:
        self._made.close()


def make(
    config: Config, listener: socket.socket | None, otherwise: str = "all blocks travel by TCP"
) -> DatagramSockets | None:
    """The sockets that `carrier` asks for; None if it asks for none, or if "auto" has to do without. LocalError if
    "udp" would have to. `otherwise`: what happens without them."""
    if Kind.UDP not in KINDS[config.carrier]:
        return None
    try:
        return DatagramSockets(config, listener)
    except OSError as error:
        where = f" on {format_address(listener.getsockname())}" if listener is not None else ""
        why = "another program has that port" if error.errno == errno.EADDRINUSE else error.strerror
        problem = f"no datagrams{where}: {why}"
        if config.carrier == "udp":
            raise LocalError(f'{problem}; set another port in local_addr, or carrier to "auto" or "tcp"') from None
        LOG.warning("%s; %s", problem, otherwise)
        return None


def _client_socket() -> socket.socket:
    """For IPv4 and IPv6, if there is IPv6. The kernel chooses the port."""
    try:
        sock = _new(socket.AF_INET6)
    except OSError:
        sock = _new(socket.AF_INET)
    try:
        sock.bind(("", 0))
    except OSError:
        sock.close()
        raise
    return sock


def _server_sockets(listener: socket.socket, count: int) -> Iterator[socket.socket]:
    """The first one is bound alone, so that no port of another program's is shared by mistake."""
    for lane in range(count):
        sock = _new(listener.family)
        try:
            if lane:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(listener.getsockname())
            if count > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            sock.close()
            raise
        yield sock


def _new(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def _configure(sock: socket.socket) -> None:
    for level, option, value in (*_ALWAYS, *_BY_FAMILY[sock.family]):
        sock.setsockopt(level, option, value)
    for forced, allowed in FORCED.items():
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:  # in a container of a user without rights on the host
            sock.setsockopt(socket.SOL_SOCKET, allowed, BUFFER_BYTES)
