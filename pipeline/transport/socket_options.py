"""The options of a connection's socket, each with its reason."""

from __future__ import annotations

import socket
import struct

from pipeline.log import LOG
from pipeline.transport.settings import SocketSettings

# linux/tcp.h; not in every version of the socket module
TCP_USER_TIMEOUT = 18
TCP_NOTSENT_LOWAT = 25

SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
UNPACED = (1 << 64) - 1  # SO_MAX_PACING_RATE: its initial value

ASKED_TIMES = 3  # with a second between them

_PACING_RATE = struct.Struct("=Q")


def configure(sock: socket.socket, settings: SocketSettings) -> None:
    """Set every option that a connection has for its whole life."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a lone packet leaves at once
    # unacknowledged data for this long: the peer is gone (keepalive probes are not sent while data is in flight)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(settings.timeout * 1000))
    if settings.notsent_lowat:
        # unsent data in the kernel is latency that no later packet can overtake
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, settings.notsent_lowat)
    if settings.congestion:
        _set_congestion_control(sock, settings.congestion)
    # the kernel tunes both sizes as long as they are not set
    if settings.send_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
    if settings.receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.receive_buffer_bytes)


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


def _set_congestion_control(sock: socket.socket, name: str) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError as error:
        LOG.warning(
            "congestion control %s: %s; the system's default is used instead. Load its module (modprobe tcp_%s) and "
            "allow it in sysctl net.ipv4.tcp_allowed_congestion_control",
            name,
            error.strerror,
            name,
        )


def set_pacing_rate(sock: socket.socket, rate: int) -> None:
    """Let the kernel send at most so many bytes a second; UNPACED for no limit."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, _PACING_RATE.pack(rate))
    except OSError:
        pass  # the connection has just ended
