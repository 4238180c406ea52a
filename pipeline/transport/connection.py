"""One TCP connection: its socket, its state, and who may touch what.

    connecting -> greeting -> established -> closed        client
                  greeting -> established -> closed        server
    (greeting begins with the TLS handshake, if there is TLS; compat has no greeting)

The inbound duty owns the life: it makes, greets, reads and closes. The outbound duty only writes, and only to
established connections. When a write fails it calls `fail`, and the inbound duty finds out by the shutdown.
A closed socket's number may be given out again at once, so a connection is closed only after the outbound duty
has looked at the roster again (`Roster`).
"""

from __future__ import annotations

import errno
import socket
import struct
import sys

from pipeline.log import LOG
from pipeline.policy.adaptive_parity import LossSample
from pipeline.policy.pacing import PathSample
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.transport.tls_channel import TlsChannel
from pipeline.wire import framing
from pipeline.wire.messages import Hello

CONNECTING, HANDSHAKE, ESTABLISHED, CLOSED = "connecting", "greeting", "established", "closed"

# linux/tcp.h; not in every version of the socket module
TCP_USER_TIMEOUT = 18
TCP_NOTSENT_LOWAT = 25
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
UNPACED = (1 << 64) - 1  # its initial value

# struct tcp_info: offsets of the u8 tcpi_retransmits and tcpi_probes, and of u32 fields
_INFO_RETRANSMITS_AT = 2
_INFO_PROBES_AT = 3
_INFO_RTT_AT = 68  # microseconds
_INFO_TOTAL_RETRANS_AT = 100
_INFO_BYTES_ACKED_AT = 120  # u64
_INFO_MIN_RTT_AT = 148  # microseconds
_INFO_DATA_SEGS_OUT_AT = 156
_INFO_BYTES = 160

UNREAD_BYTES = 65536  # of a stranger's, at most, before he is closed

WOULD_BLOCK = (errno.EAGAIN, errno.EINPROGRESS)


class HandshakeState:
    """How far the greeting of a connection has got; gone once it is established. Owned by workers.tcp.handshake."""

    def __init__(self, expects: str) -> None:
        self.expects = expects
        self.buffer = bytearray()  # what has come of the next frame
        self.hello: Hello | None = None
        self.hello_frame = b""
        self.challenge_frame = b""
        self.transcript = b""
        self.certificate_sha256 = bytes(32)  # of the server's
        self.mtu = 0  # of the other end's device
        self.connections = 0  # that the client opens in all


class Connection:
    """State of one connection. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, sock: socket.socket, address: tuple, state: str, serial: int, now: int) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.host = address[0]
        self.address = format_address(address)
        self.state = state
        self.serial = serial
        self.channel: TlsChannel | None = None  # with TLS
        self.stamped_lane = 0
        self.peer_handle = 0  # whose it is; see pipeline.shm.peer_table
        self.row = -1
        self.state_since_ns = now
        self.last_error = ""
        # inbound duty
        self.last_received_ns = now
        self.received_bytes = 0
        self.exchange: HandshakeState | None = None
        self.stash = b""  # bytes of an unfinished frame, while another connection has the slot
        self.need = 0  # where that frame ends, counted from its beginning; 0: not known
        self.dial_index = -1  # index of the client's dial slot; on a server known after the greeting
        self.offloads = 0
        self.traffic_class = framing.BULK
        self.accepts_shards = False  # the peer takes shards
        # outbound duty
        self.last_sent_ns = now
        self.sent_bytes = 0
        self.keepalive_bytes = 0  # bytes of those, because there was nothing else to say

    @property
    def peer(self) -> int:
        return self.peer_handle & PEER_INDEX_MASK

    def fail(self, error: OSError) -> None:
        """Called by the outbound duty when a write fails: the inbound duty will find the connection ended."""
        self.last_error = error.strerror or str(error)
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already, which is what we want

    def seen(self) -> tuple[LossSample, PathSample]:
        """How the kernel sees this connection: its losses, and its delay."""
        info = self._info()
        return (
            LossSample(
                self.serial,
                info[_INFO_RETRANSMITS_AT],
                _u32(info, _INFO_TOTAL_RETRANS_AT),
                _u32(info, _INFO_DATA_SEGS_OUT_AT),
            ),
            PathSample(
                self.serial,
                1000 * _u32(info, _INFO_RTT_AT),
                1000 * _u32(info, _INFO_MIN_RTT_AT),
                int.from_bytes(info[_INFO_BYTES_ACKED_AT : _INFO_BYTES_ACKED_AT + 8], sys.byteorder),
            ),
        )

    def stands_still(self) -> bool:
        """Whether the kernel waits for an answer beyond its retransmission timeout."""
        info = self._info()
        return bool(info[_INFO_RETRANSMITS_AT] or info[_INFO_PROBES_AT])

    def pace(self, rate: int) -> None:
        """Send at most so many bytes a second; UNPACED for no limit."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=Q", rate))
        except OSError:
            pass  # it has just ended

    def rtt_us(self) -> int:
        """Smoothed round trip time as the kernel sees it; 0 if it does not say."""
        return _u32(self._info(), _INFO_RTT_AT)

    def _info(self) -> bytes:
        """struct tcp_info; an old kernel's is shorter, and what it does not say is 0."""
        try:
            return self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES).ljust(_INFO_BYTES, b"\0")
        except OSError:
            return bytes(_INFO_BYTES)

    def sealed(self, data: bytes) -> bytes:
        """What goes on the wire for `data`, and for what the channel itself has to say."""
        return data if self.channel is None else self.channel.seal([data] if data else [])

    @property
    def unsent(self) -> bool:
        """Whether the channel itself has something to say."""
        return self.channel is not None and self.channel.unsent

    def say(self, frame: bytes) -> None:
        """Send a frame of the greeting. It is shorter than any socket's buffer, which is empty."""
        self.socket.send(self.sealed(frame))

    def say_goodbye(self) -> None:
        """Nothing is sent after this. OSError if it cannot be said."""
        if self.channel is not None and self.channel.ready:
            self.socket.send(self.channel.closing())
        self.socket.shutdown(socket.SHUT_WR)

    def close_unread(self) -> None:
        """Close it whatever waits unread: Linux answers that with a reset, which would tell how far we had read."""
        try:
            self.socket.recv(UNREAD_BYTES)
        except OSError:
            pass  # nothing waits
        self.socket.close()

    def receive(self, size: int) -> bytes:
        """At most so many bytes of the greeting; empty at the end. BlockingIOError if there are none."""
        if self.channel is None:
            return self.socket.recv(size)
        buffer = bytearray(size)
        with memoryview(buffer) as view:
            count = self.channel.receive(view)
        return bytes(buffer[:count])

    def report(self) -> ConnectionStatus:
        """For `status`."""
        rtt = self.rtt_us() if self.state == ESTABLISHED else 0
        return ConnectionStatus(
            self.state,
            self.address,
            self.stamped_lane,
            self.serial,
            self.sent_bytes,
            self.received_bytes,
            self.state_since_ns,
            self.last_received_ns,
            rtt,
            self.traffic_class,
            self.peer,
        )


def _u32(info: bytes, at: int) -> int:
    return int.from_bytes(info[at : at + 4], sys.byteorder)


class ConnectionList:
    """The established connections of a tcp worker, as its two duties share them.

    The inbound duty replaces the tuple and counts `version` up; the outbound duty notes in `seen` which version it
    works with. What was taken off the roster may be closed once `seen` has caught up.
    """

    def __init__(self, now: int) -> None:
        self.established: tuple[Connection, ...] = ()
        self.version = 0
        self.seen = 0
        self.empty_since = now

    def add(self, connection: Connection) -> None:
        self.established += (connection,)
        self.version += 1

    def remove(self, connection: Connection, now: int) -> None:
        self.established = tuple(c for c in self.established if c is not connection)
        if not self.established:
            self.empty_since = now
        self.version += 1


def configure(sock: socket.socket, settings: dict) -> None:
    """Set every option that a connection has, each for its reason."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a lone packet leaves at once
    # unacknowledged data for this long: the peer is gone (keepalive probes are not sent while data is in flight)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(settings["timeout"] * 1000))
    if settings["notsent_lowat"]:
        # what waits unsent in the kernel is latency that no later packet can overtake
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, settings["notsent_lowat"])
    if settings["congestion"]:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, settings["congestion"].encode())
        except OSError as error:
            LOG.warning(
                "congestion control %s: %s; the system's default is used; what workers may choose is in sysctl "
                "net.ipv4.tcp_allowed_congestion_control, once its module is loaded (modprobe tcp_%s)",
                settings["congestion"],
                error.strerror,
                settings["congestion"],
            )
    # unset they are tuned by the kernel; setting them ends that
    if settings["send_buffer_bytes"]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings["send_buffer_bytes"])
    if settings["receive_buffer_bytes"]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings["receive_buffer_bytes"])


def format_address(address: tuple) -> str:
    """A socket address as people write it: an IPv4 one on a socket for both (RFC 4291, 2.5.5.2) is an IPv4 one."""
    host, port = address[:2]
    if "." in host:
        host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
