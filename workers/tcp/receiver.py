"""The inbound duty of a tcp worker: bytes of its connections become whole frames in its inbound ring.

A packet's way, in the order in which `work` calls:

    1. wait           epoll says which connections can be read; after a silence the next stage is woken ahead
    2. _read_early    frames that arrived behind a handshake, or were held back, as soon as a slot is free
    3. _read          the connections in whose TLS channel bytes are left, then those that can be read
    4. _read_burst    up to READ_BURST receives, straight into a slot of the ring (`workers.tcp.frame_reader`)
    5. _count         bytes and frames; a peer beyond its rate is paused, all its connections together
    6. handle_event   every other event is the connection manager's: handshakes, new connections, the supervisor channel
    7. _resume_peers  paused peers that are in credit again
    8. tick           the connection manager's clock: timeouts, checks, rates, status rows

Where connections come from and how they end is the business of `workers.tcp.connection_manager`.
A peer's bytes can end that peer's connection and nothing else: PeerError is caught where the connection is read.
"""

from __future__ import annotations

import time

from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.log import printable
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.port import QUIET_NS
from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.connection_list import ConnectionList
from workers.tcp.client_connections import ClientConnections
from workers.tcp.connection_manager import ConnectionManager, ManagerContext
from workers.tcp.frame_reader import FrameReader
from workers.tcp.peer_receiver import PeerReceiver
from workers.tcp.sender import Sender
from workers.tcp.server_connections import ServerConnections

READ_BURST = 8  # receives on one connection before the others have their turn
FULL_READ_BYTES = 131072  # a receive of less has most likely emptied the socket

_BYTES_RECEIVED = ID["tcp.bytes_received"]
_FRAMES_RECEIVED = ID["tcp.frames_received"]
_RING_FULL_WAITS = ID["tcp.ring_full_waits"]


class Receiver:
    """Stage 0 of the inbound ring."""

    name = "inbound"

    def __init__(self, attachment: Attachment, connection_list: ConnectionList, sender: Sender, fds: WorkerFds) -> None:
        self._sender = sender
        self._counters = attachment.page.counters
        self._bell = attachment.doorbells[self.name]
        (self._port,) = attachment.ports(self.name, "inbound")
        self._frame_reader = FrameReader(self._port, attachment.settings.frame_limit)
        self._events: list[tuple[int, int]] = []
        self._early: list[tuple[Connection, int]] = []  # bytes not in the ring yet, and how many are not counted yet
        self._pending: dict[Connection, None] = {}  # bytes are left in their TLS channel
        self._paused: list[PeerReceiver] = []
        self._ring_full = False
        self._last_event_ns = 0
        kind: type[ServerConnections | ClientConnections]
        kind = ServerConnections if fds.listener >= 0 else ClientConnections
        self.connections: ConnectionManager = kind(ManagerContext(attachment, connection_list, sender.kick, fds, self))

    # -- the duty

    def wait(self, seconds: float) -> None:
        if self._ring_full:
            self._bell.wait(self._port.ready, seconds)
            self._ring_full = not self._port.ready()
        self._events = self.connections.poll(0 if self._ring_full else seconds)
        if self._events:
            now = time.monotonic_ns()
            if now - self._last_event_ns > QUIET_NS:
                self._port.wake_ahead()
            self._last_event_ns = now

    def work(self) -> int:
        """Read all that can be read, let the manager handle every other event, and run its clock."""
        connections = self.connections
        done = 0
        if self._early:
            self._read_early()
        if self._pending:
            for pending in self._readable_inside():
                del self._pending[pending]
                done += self._read(pending)
        established = connections.established
        for fd, _ in self._events:
            connection = established.get(fd)
            if connection is not None:
                done += self._read(connection)
            else:
                connections.handle_event(fd)
        self._events = []
        now = time.monotonic_ns()
        if self._paused:
            self._resume_peers(now)
        connections.tick(now, self._ring_full)
        if self._pending and not self._ring_full and self._readable_inside():
            return MORE
        return DONE if done else NOTHING

    def drained(self) -> bool:
        """The duty ends when the outbound duty has sent what there was: then it shuts down every connection."""
        if not self._sender.ended:
            return False
        self.connections.shutdown_all()
        return True

    def _readable_inside(self) -> list[Connection]:
        """The connections with bytes in their TLS channel, without those of paused peers and those that are held."""
        peers = self.connections.peers
        return [each for each in self._pending if not (peers[each.peer].paused or each.is_held)]

    # -- reading

    def _read_early(self) -> None:
        """Publish the frames that arrived behind a handshake, or were held back, as soon as a slot is free."""
        while self._early and self._port.ready():
            connection, uncounted = self._early.pop()
            if connection.state is ESTABLISHED:
                try:
                    self._frame_reader.publish_early(connection)
                    self._count(connection, uncounted)
                    if connection.is_held:
                        self.connections.ask_about_claim(connection)
                except PeerError as error:
                    self._close_malformed(connection, error)

    def _read(self, connection: Connection) -> int:
        """Read an established connection; close it if it has ended or sends nonsense. Bytes."""
        try:
            return self._read_burst(connection)
        except PeerError as error:
            self._close_malformed(connection, error)
        except EOFError:
            self.connections.close(connection, connection.send.error or "closed by the peer")
        except OSError as error:
            self.connections.close(connection, connection.send.error or printable(error.strerror or str(error)))
        return 0

    def _read_burst(self, connection: Connection) -> int:
        reader = self._frame_reader
        channel = connection.channel
        total = 0
        try:
            for _ in range(READ_BURST):
                free = self._port.ready()
                if not free:
                    self._ring_full = True
                    self._counters[_RING_FULL_WAITS] += 1
                    connection.receive.last_ns = time.monotonic_ns()  # its silence is our own fault
                    break
                received = reader.read(connection, free)
                if not received:
                    raise EOFError
                total += received
                if connection.receive.learner is not None and connection.is_held:
                    self.connections.ask_about_claim(connection)
                    break
                if received < FULL_READ_BYTES and (channel is None or not channel.pending):
                    break  # there was no more; to ask costs an exception
        except BlockingIOError:
            pass
        finally:
            if total:
                self._count(connection, total)
        if channel is not None and channel.pending:
            self._pending[connection] = None
        return total

    def _close_malformed(self, connection: Connection, error: PeerError) -> None:
        self._counters[ID["tcp.closed_frame_too_long"]] += 1
        self.connections.close(connection, printable(str(error)))

    # -- counting, and rates

    def _count(self, connection: Connection, size: int) -> None:
        now = time.monotonic_ns()
        receive = connection.receive
        receive.last_ns = now
        receive.byte_count += size
        counters = self._counters
        counters[_BYTES_RECEIVED] += size
        counters[_FRAMES_RECEIVED] += self._frame_reader.frames
        self._frame_reader.frames = 0
        peer = self.connections.peers[connection.peer]
        peer.record_received(size, now)
        if not peer.paused and not peer.bucket.in_credit(now):
            self._pause(peer)

    def _pause(self, peer: PeerReceiver) -> None:
        peer.paused = True
        self._paused.append(peer)
        self._counters[ID["tcp.rate_pauses"]] += 1
        for connection in peer.established:
            self.connections.watch(connection, False)

    def _resume_peers(self, now: int) -> None:
        for peer in self._paused:
            if peer.bucket.in_credit(now):
                peer.paused = False
                for connection in peer.established:
                    connection.receive.last_ns = now  # its silence was our own fault
                    self.connections.watch(connection, not connection.is_held)
        self._paused = [peer for peer in self._paused if peer.paused]

    # -- called by the connection manager

    def on_established(self, connection: Connection, early: bytes) -> None:
        if early:
            connection.receive.partial_frame = early
            self._early.append((connection, len(early)))
            self._read_early()
        if connection.channel is not None and connection.channel.pending:
            self._pending[connection] = None

    def on_released(self, connection: Connection) -> None:
        self._early.append((connection, 0))
        self._read_early()
        self.connections.watch(connection, not (self.connections.peers[connection.peer].paused or connection.is_held))

    def on_closed(self, connection: Connection) -> None:
        self._pending.pop(connection, None)
        self._frame_reader.forget(connection)
