"""The options of a connection's socket, each with its reason."""

from __future__ import annotations

import socket
import struct

from pipeline.policy.congestion import AUTO, algorithm
from pipeline.transport.settings import SocketSettings

# linux/tcp.h; not in every version of the socket module
TCP_USER_TIMEOUT = 18
TCP_NOTSENT_LOWAT = 25

SO_BINDTODEVICE, SO_MAX_PACING_RATE = 25, 47  # asm-generic/socket.h
UNPACED = (1 << 64) - 1  # SO_MAX_PACING_RATE: its initial value

DSCP_SHIFT = 2  # RFC 2474, 3

ASKED_TIMES = 3  # with a second between them

CONGESTION_NAME_BYTES = 16  # TCP_CA_NAME_MAX, net/tcp.h

_PACING_RATE = struct.Struct("=Q")


def configure(sock: socket.socket, settings: SocketSettings) -> None:
    """Set the options that a connection has from its beginning."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a lone packet leaves at once
    # unacknowledged data for this long: the peer is gone (keepalive probes are not sent while data is in flight)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(settings.timeout * 1000))
    if settings.notsent_lowat:
        # unsent data in the kernel is latency that no later packet can overtake
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, settings.notsent_lowat)
    if settings.congestion:  # what is refused here comes once it is established: workers.tcp.peer_congestion
        set_congestion_control(sock, first_congestion_control(settings.congestion, congestion_control(sock)))
    # the kernel tunes both sizes as long as they are not set
    if settings.send_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
    if settings.receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.receive_buffer_bytes)


def bind_to_interface(sock: socket.socket, name: str) -> None:
    """Let a socket send and receive on one interface alone, whatever the routes prefer. OSError if it cannot be."""
    sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, name.encode())


def ask_other_end(sock: socket.socket) -> None:
    """Let the kernel ask whether the other end is there (tcp(7), keepalive), and end the connection if it does not
    answer ASKED_TIMES. No byte of it reaches a program."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 0)  # it would end the connection after one question
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, ASKED_TIMES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError:
        pass  # the connection has just ended


def first_congestion_control(setting: str, host: str) -> str:
    """The algorithm with which a connection begins, by `congestion`, where the host has chosen `host`."""
    return algorithm(host, lossy=False) if setting == AUTO else setting or host


def congestion_control(sock: socket.socket) -> str:
    """The algorithm that a socket has; "" if it is closed."""
    try:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_NAME_BYTES)
    except OSError:
        return ""
    return name.rstrip(b"\0").decode(errors="replace")


def set_congestion_control(sock: socket.socket, name: str) -> bool:
    """Whether the socket has that algorithm now. The kernel may not have it, or not let this process choose it."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError:
        return False
    return True


def set_dscp(sock: socket.socket, dscp: int) -> None:
    """Let the kernel mark what it sends (RFC 2474). The two bits of ECN stay the kernel's."""
    mark = dscp << DSCP_SHIFT
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, mark)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, mark)  # an IPv6 socket may have an IPv4 connection
    except OSError:
        pass  # the connection has just ended


def set_pacing_rate(sock: socket.socket, rate: int) -> None:
    """Let the kernel send at most so many bytes a second; UNPACED for no limit."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, _PACING_RATE.pack(rate))
    except OSError:
        pass  # the connection has just ended
