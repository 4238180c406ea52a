"""One TCP connection: its identity and its life, and the state that each of its two duties has for it.

    handshake -> established -> closed
              -> given away to the fallback of a server, whose business it is from then on

It begins once TCP is connected: a client's dialer has connected it, a server's acceptor has accepted it. The handshake
is that of TLS, if there is TLS, and then the messages of our own. With compat there are no messages.

    Connection      identity and life. The inbound duty makes and closes it, and alone changes its state
    ReceiveState    written by the inbound duty, which reads the socket
    SendState       written by the outbound duty, which writes to established connections

When a write fails, the outbound duty calls write_failed(): it shuts the socket down, and the inbound duty finds the
connection ended. When a socket is closed that both duties may hold: pipeline.transport.connection_list.
"""

from __future__ import annotations

import errno
import socket

from pipeline.policy.token_bucket import TokenBucket
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.transport.address import SocketAddress, format_address
from pipeline.transport.address_learner import AddressLearner
from pipeline.transport.socket_options import congestion_control
from pipeline.transport.tcp_info import TcpInfo, read_tcp_info
from pipeline.transport.tls_channel import RECORDS_MOST, TlsChannel
from pipeline.wire import framing
from pipeline.wire.handshake import Handshake
from pipeline.wire.uplink import Uplink

HANDSHAKE, ESTABLISHED, CLOSED = "handshake", "established", "closed"
GIVEN_AWAY = "given away"  # to the fallback

UNREAD_BYTES = 65536  # of an unauthenticated client's, read at most before its socket is closed

BARE_FRAMES_RATE, BARE_FRAMES_BURST = 50, 500
"""Frames without contents a second, and at once: an honest end sends one in each `keepalive`."""

WOULD_BLOCK = (errno.EAGAIN, errno.EINPROGRESS)

UNANSWERED = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
"""Errors of a connection to which nobody answers: a sign of the path. A reset comes from a program, or a firewall."""


class ReceiveState:
    """State of one connection that the inbound duty owns."""

    def __init__(self, now: int) -> None:
        self.last_ns = now  # when bytes came last, or when their absence was our own fault
        self.byte_count = 0
        self.unanswered = False  # it ends because nothing came, or with an error of UNANSWERED
        self.is_held_up = False  # its bytes wait unread, for reasons of our own
        self.partial_frame = b""  # bytes of an unfinished frame, while another connection has the slot
        self.frame_end = 0  # where that frame ends, counted from its beginning; 0: not known yet
        self.has_frames = False  # there may be whole frames among those bytes, which wait for the next slot
        self.bare_frames = TokenBucket(BARE_FRAMES_RATE, BARE_FRAMES_BURST)
        self.stamped_lane = 0  # of the tun worker that gets its frames
        self.status_row = -1  # in the peer table
        self.unopened_before = 0  # blocks of an earlier connection with this serial number that were not opened
        self.scanner: RecordScanner | None = None  # of sealed records, once the handshake is over
        self.far = False  # its uplink is much longer than another one that works: it carries no bulk
        self.learner: AddressLearner | None = None  # on a hub of the original program, until all addresses are learnt


class SendState:
    """State of one connection that the outbound duty owns."""

    def __init__(self, now: int) -> None:
        self.last_ns = now
        self.byte_count = 0
        self.keepalive_bytes = 0  # bytes of those that were keepalives or questions
        self.keepalive_after_ns = 0  # after so long without a frame the next one is due; 0: as the settings say
        self.asked_ns = now  # when the other end was asked last
        self.writer: RecordWriter | None = None  # of sealed records, once the handshake is over
        self.late = False  # its uplink is silent: others send what it has taken
        self.error = ""  # why a write has failed; the inbound duty reads it
        self.unanswered = False  # with an error of UNANSWERED


class Connection:
    """Identity and life of one connection. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, sock: socket.socket, address: SocketAddress, state: str, serial: int, now: int) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.channel: TlsChannel | None = None  # with TLS, until the ends seal for themselves
        self.records_at_once = RECORDS_MOST  # of TLS, opened in one receive: 1 where the last one may be that of TLS
        self.serial = serial
        self._address: SocketAddress = address
        self.state = state
        self.state_since_ns = now
        self.handshake: Handshake | None = None  # until it is over; owned by workers.tcp.handshake
        # known after the handshake, constant from then on
        self.peer_handle = 0  # whose it is; see pipeline.shm.peer_table
        self.server_name = ""  # of a client's server, for its certificate
        self.dial_index = -1  # index of the client's dial slot; a client knows it from the beginning
        self.offloads = 0
        self.traffic_class = framing.BULK
        self.accepts_shards = False  # the other end does
        self.answers = False  # the other end answers questions, where frames are sealed
        self.takes_padding = False  # the other end does, where frames are sealed
        self.uplink: Uplink | None = None  # of the client, if it has several
        # each written by one duty alone
        self.receive = ReceiveState(now)
        self.send = SendState(now)

    @property
    def is_held(self) -> bool:
        """Whether the supervisor is deciding about an address of the peer: nothing is read meanwhile."""
        learner = self.receive.learner
        return learner is not None and learner.claim is not None

    def set_end(self, host: str, port: int) -> None:
        """The other end is a proxy, and says where its client is."""
        self._address = host, port

    @property
    def host(self) -> str:
        return self._address[0]

    @property
    def end(self) -> tuple[str, int]:
        """Address and port of the other end."""
        return self._address[0], self._address[1]

    @property
    def address(self) -> str:
        return format_address(self._address)

    @property
    def peer(self) -> int:
        return self.peer_handle & PEER_INDEX_MASK

    def set_state(self, state: str, now: int) -> None:
        self.state = state
        self.state_since_ns = now

    def forgive(self, missed: int, now: int) -> None:
        """We did not run for so long: the other end's silence and its handshake are shorter by that."""
        self.receive.last_ns = min(now, self.receive.last_ns + missed)
        if self.state is not ESTABLISHED:
            self.state_since_ns = min(now, self.state_since_ns + missed)

    # -- the handshake

    def send_frame(self, frame: bytes) -> None:
        """Send a frame of the handshake. It is shorter than any socket's buffer, which is empty."""
        self.socket.send(self.seal(frame))

    def receive_bytes(self, size: int) -> bytes:
        """At most so many bytes of the handshake; empty at the end. BlockingIOError if there are none."""
        if self.channel is None:
            return self.socket.recv(size)
        buffer = bytearray(size)
        with memoryview(buffer) as view:
            count = self.channel.receive(view, self.records_at_once)
        return bytes(buffer[:count])

    # -- established

    def establish(self, now: int) -> None:
        """The handshake is over. The outbound duty does not know the connection yet."""
        self.handshake = None
        self.set_state(ESTABLISHED, now)
        self.receive.last_ns = self.send.last_ns = now

    def seal(self, data: bytes) -> bytes:
        """The bytes that go on the wire for `data`; with TLS, behind the channel's own output."""
        return data if self.channel is None else self.channel.seal([data] if data else [])

    def keepalive(self) -> bytes:
        """The bytes of a keepalive on the wire."""
        writer = self.send.writer
        return self.seal(framing.KEEPALIVE_FRAME) if writer is None else writer.keepalive()

    def begin_sealing(self, writer: RecordWriter, scanner: RecordScanner) -> bytes:
        """TLS has carried the handshake: from here on the ends seal for themselves. Bytes that are sealed already."""
        assert self.channel is not None
        rest = self.channel.detach()
        self.channel = None
        self.send.writer, self.receive.scanner = writer, scanner
        return rest

    @property
    def can_be_asked(self) -> bool:
        """Whether the other end answers questions on this connection."""
        return self.answers and self.receive.scanner is not None

    @property
    def has_tls_output(self) -> bool:
        """Whether the channel has output of its own, such as an answer to a KeyUpdate."""
        return self.channel is not None and self.channel.has_output

    def tcp_info(self) -> TcpInfo:
        return read_tcp_info(self.socket)

    def status(self) -> ConnectionStatus:
        """Its row in the peer table."""
        info = self.tcp_info() if self.state == ESTABLISHED else None
        return ConnectionStatus(
            self.state,
            self.address,
            self.receive.stamped_lane,
            self.serial,
            self.send.byte_count,
            self.receive.byte_count,
            self.state_since_ns,
            self.receive.last_ns,
            info.rtt_us if info else 0,
            self.traffic_class,
            self.peer,
            info.lost_segments if info else 0,
            info.data_segs_out if info else 0,
            0 if self.uplink is None else self.uplink.number + 1,
            congestion_control(self.socket) if info else "",
        )

    # -- its end

    def write_failed(self, error: OSError) -> None:
        """Called by the outbound duty when a write fails: the inbound duty will find the connection ended."""
        self.send.error = error.strerror or str(error)
        self.send.unanswered = error.errno in UNANSWERED
        self.abort()

    @property
    def unanswered(self) -> bool:
        """Whether it ends for want of an answer."""
        return self.receive.unanswered or self.send.unanswered

    def abort(self) -> None:
        """Shut the socket down in both directions: nothing is sent or received any more, and its number stays taken."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    def shutdown(self) -> None:
        """End the outbound direction: close_notify with TLS, then FIN. OSError if the socket takes neither."""
        if self.send.writer is not None:
            self.socket.send(self.send.writer.end())
        elif self.channel is not None and self.channel.ready:
            self.socket.send(self.channel.close_notify())
        self.socket.shutdown(socket.SHUT_WR)

    def close_unauthenticated(self) -> None:
        """Close the socket. Unread bytes are discarded first: a reset, Linux's answer to them, would tell how many
        were read."""
        try:
            self.socket.recv(UNREAD_BYTES)
        except OSError:
            pass  # nothing waits
        self.socket.close()
