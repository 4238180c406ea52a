"""The kernel's socket of a fake flow: it makes the handshake, and from then on it is deaf.

    dial, is_connected    a client's: a port of its lane, and a connection in progress
    ends, agreed          the outcome of the handshake
    silence               the kernel drops all packets of the connection, so it answers none, and sends none
    close                 without a packet

None of it needs a right. A filter that drops everything would do as well, but recent kernels keep filters of TCP
sockets for root. The option that drops packets from too far away is for everybody: no packet that has passed a router
has 255 hops left, and none of ours begins with so many. An attacker on the link could send one that has, and so end a
flow whose numbers it knows.

While the socket is there, its port is taken, and the kernel sends no reset for what comes. A kernel that has finished a
handshake and has nothing to send is quiet for good: it has no timer but keepalive, which is off.

If the process dies, the kernel resets the connection with old numbers, which no firewall takes for good. Later
packets meet a port without a connection: that reset fits, and a client makes another flow at once.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from typing import Any

from pipeline.faketcp.flow import Agreed, Ends

# asm-generic/socket.h, linux/tcp.h
SO_BINDTODEVICE = 25
TCP_TIMESTAMP = 24
IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73  # linux/in.h, linux/in6.h; RFC 5082
HOPS_MOST = 255
TCP_ESTABLISHED, TCP_SYN_SENT = 1, 2
TCPI_OPT_TIMESTAMPS = 1

PORTS = range(32768, 61000)  # the kernel's own choice for connections that go out (ip_local_port_range)
PORT_TRIES = 64
PORT_TAKEN = (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL)

MAPPED = "::ffff:"
"""IPv4 addresses begin so at a socket for both versions (RFC 4291, 2.5.5.2)."""

_INFO = struct.Struct("=B4xBB9xI")  # struct tcp_info: tcpi_state, tcpi_options, both scales; tcpi_snd_mss, at 16
_LINGER_NOT = struct.pack("ii", 1, 0)

Address = tuple[str, int]


def dial(family: int, server: Address, scope: int, lane: int, lanes: int) -> socket.socket:
    """A connection in progress, from a port of this lane (filters.tap_of_client). OSError says why there is none."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _bind(sock, lane, lanes)
        to: tuple[Any, ...] = server if family == socket.AF_INET else (*server, 0, scope)
        sock.connect(to)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, lane: int, lanes: int) -> None:
    for tries_left in reversed(range(PORT_TRIES)):
        port = random.randrange(PORTS.start, PORTS.stop - lanes)
        try:
            sock.bind(("", port - port % lanes + lane))
        except OSError as error:
            if error.errno not in PORT_TAKEN or not tries_left:
                raise
        else:
            return


def is_connected(sock: socket.socket) -> bool:
    """False while it is in progress. OSError says why it has failed."""
    failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, "connect")
    state = _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))[0]
    if state not in (TCP_ESTABLISHED, TCP_SYN_SENT):
        raise ConnectionResetError(errno.ECONNRESET, "connect")
    return bool(state == TCP_ESTABLISHED)


def ends(sock: socket.socket) -> Ends:
    """With IPv4 addresses as such, also of a socket for both versions."""
    local, remote = sock.getsockname(), sock.getpeername()
    return Ends(_packed(local[0]), local[1], _packed(remote[0]), remote[1])


def _packed(host: str) -> bytes:
    host = host.partition("%")[0].removeprefix(MAPPED)
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def agreed(sock: socket.socket) -> Agreed:
    _, options, scales, payload_most = _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
    is_v6 = sock.family == socket.AF_INET6 and not sock.getpeername()[0].startswith(MAPPED)
    level, option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if is_v6 else (socket.IPPROTO_IP, socket.IP_TTL)
    clock = sock.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP) & 0xFFFFFFFF
    hop_limit = min(sock.getsockopt(level, option), HOPS_MOST - 1)
    return Agreed(scales & 15, scales >> 4, bool(options & TCPI_OPT_TIMESTAMPS), clock, hop_limit, payload_most)


def silence(sock: socket.socket) -> None:
    """And it is gone at once when it is closed: one that waited for its end would go on being silent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, HOPS_MOST)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, HOPS_MOST)


def close(sock: socket.socket) -> None:
    """The reset of the kernel would have old numbers: it is led to the loopback, from where it goes nowhere."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"lo\0")
    except OSError:
        pass  # before Linux 5.7 it is for root alone; then others on the way drop that reset
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    sock.close()
