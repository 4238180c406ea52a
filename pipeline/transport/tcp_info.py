"""The kernel's numbers of a TCP connection: some fields of struct tcp_info (linux/tcp.h)."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from typing import NamedTuple

from pipeline.policy.silence import Outstanding
from pipeline.policy.standstill import Arrival

SIOCOUTQ = 0x5411  # asm-generic/ioctls.h, as TIOCOUTQ

_TCP_INFO = struct.Struct(
    "=2x"
    "B"  # tcpi_retransmits, at 2
    "B"  # tcpi_probes, at 3
    "12x"
    "I"  # tcpi_snd_mss, at 16
    "8x"
    "I"  # tcpi_sacked, at 28
    "36x"
    "I"  # tcpi_rtt, at 68
    "28x"
    "I"  # tcpi_total_retrans, at 100
    "16x"
    "Q"  # tcpi_bytes_acked, at 120
    "16x"
    "I"  # tcpi_notsent_bytes, at 144
    "I"  # tcpi_min_rtt, at 148
    "4x"
    "I"  # tcpi_data_segs_out, at 156
    "16x"
    "Q"  # tcpi_rwnd_limited, at 176
    "32x"
    "I"  # tcpi_dsack_dups, at 216
    "8x"
    "I"  # tcpi_snd_wnd, at 228
)


_OUTSTANDING = struct.Struct(
    "=24x"
    "I"  # tcpi_unacked, at 24
    "24x"
    "I"  # tcpi_last_data_recv, at 52
    "I"  # tcpi_last_ack_recv, at 56
    "8x"
    "I"  # tcpi_rtt, at 68
)

_ARRIVAL = struct.Struct(
    "=16x"
    "I"  # tcpi_snd_mss, at 16
    "48x"
    "I"  # tcpi_rtt, at 68
    "48x"
    "Q"  # tcpi_bytes_acked, at 120
    "16x"
    "I"  # tcpi_notsent_bytes, at 144
    "52x"
    "Q"  # tcpi_bytes_sent, at 200
    "Q"  # tcpi_bytes_retrans, at 208
    "12x"
    "I"  # tcpi_snd_wnd, at 228
)


_ACKNOWLEDGED = struct.Struct(
    "=16x"
    "I"  # tcpi_snd_mss, at 16
    "36x"
    "I"  # tcpi_last_ack_recv, at 56
    "8x"
    "I"  # tcpi_rtt, at 68
    "I"  # tcpi_rttvar, at 72
    "4x"
    "I"  # tcpi_snd_cwnd, at 80
    "64x"
    "I"  # tcpi_min_rtt, at 148
    "8x"
    "Q"  # tcpi_delivery_rate, at 160
)


class Acknowledged(NamedTuple):
    """When the other end of a connection has acknowledged anything, how long that takes as a rule, and how much may be
    on its way meanwhile."""

    snd_mss: int  # bytes of a segment
    last_ms: int  # since the last acknowledgement, whatever it was for
    rtt_us: int
    rttvar_us: int
    snd_cwnd: int  # segments
    min_rtt_us: int
    delivery_rate: int  # bytes a second, when it last had enough to send; 0: not known


class TcpInfo(NamedTuple):
    """The fields that are read, in the order of the struct. Counts are since the connection was made."""

    retransmits: int  # retransmission timeouts since the last progress
    probes: int  # of a closed window, without an answer
    snd_mss: int  # bytes of a segment now; the kernel lowers it where longer ones do not pass
    sacked: int  # segments that arrived behind a missing one, which the other end keeps until that one comes
    rtt_us: int  # smoothed
    total_retrans: int  # segments sent again
    bytes_acked: int
    notsent_bytes: int  # given to the kernel, which has not sent them yet
    min_rtt_us: int
    data_segs_out: int  # segments with data, those sent again included
    rwnd_limited_us: int = 0  # time in which the other end's window was closed, since it reads slowly
    dsack_dups: int = 0  # segments that were sent again and had arrived before (RFC 2883)
    snd_wnd: int = 0  # the other end's window, bytes

    @property
    def lost_segments(self) -> int:
        """Segments sent again that had not arrived. Until the other end has answered, one that had counts as well.

        A tail loss probe (RFC 8985) repeats a segment whose answer comes later than a few round trips. On a fresh or
        idle connection that is the other end's delayed acknowledgement as a rule, and nothing was lost.
        """
        return max(0, self.total_retrans - self.dsack_dups)

    @property
    def timed_out(self) -> bool:
        """Whether the kernel has waited for an answer longer than its retransmission timeout."""
        return bool(self.retransmits or self.probes)


def read_outstanding(sock: socket.socket) -> Outstanding:
    """The segments without an answer, and when anything came last. On a failed socket nothing is outstanding."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _OUTSTANDING.size)
    except OSError:
        return Outstanding(0, 0)
    unacked, data_ms, ack_ms, rtt_us = _OUTSTANDING.unpack(info)
    return Outstanding(unacked, min(data_ms, ack_ms), rtt_us)


def read_arrival(sock: socket.socket) -> Arrival:
    """The bytes that the kernel has got for a connection, and those that are at the other end.

    Where the window is closed, all counts as arrived: the rest waits for a program that does not read. A socket that is
    no TCP socket, or has failed, tells nothing, and neither does a kernel before Linux 5.4.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ARRIVAL.size)
    except OSError:
        return Arrival()
    segment, rtt_us, acked, unsent, sent, repeated, window = _ARRIVAL.unpack(info.ljust(_ARRIVAL.size, b"\0"))
    if window < segment:
        return Arrival(rtt_us=rtt_us)
    return Arrival(sent - repeated + unsent, acked, rtt_us)


def read_tcp_info(sock: socket.socket) -> TcpInfo:
    """The kernel's answer. An old kernel's struct is shorter: fields that it lacks are 0, and all are on an error."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        info = b""
    return TcpInfo._make(_TCP_INFO.unpack(info.ljust(_TCP_INFO.size, b"\0")))


def read_acknowledged(sock: socket.socket) -> Acknowledged | None:
    """None on a failed socket."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
    except OSError:
        return None
    return Acknowledged._make(_ACKNOWLEDGED.unpack(info))


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Bytes that the other end has not acknowledged, sent or not (SIOCOUTQ, linux/sockios.h); 0 on a failed socket."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), SIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
