"""The inbound duty of a tcp worker: what its connections say, as whole frames into its inbound ring.

Their lives are in `tcp_lives`. A peer's bytes can end that peer's connection and nothing else: PeerError is caught
where the connection is served. A peer that has used up its rate is not read for a moment, all its connections together:
TCP slows it down, and nothing is lost.
"""

from __future__ import annotations

import argparse
import select
import time

from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.log import printable
from pipeline.runtime.port import QUIET_NS
from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from pipeline.transport.connection import ESTABLISHED, Connection, ConnectionList
from pipeline.wire import framing
from workers.tcp.connection_manager import EVENTS, ConnectionManager
from workers.tcp.frame_reader import FrameReader
from workers.tcp.peer_receiver import PeerReceiver
from workers.tcp.sender import Sender

TICK_NS = 100_000_000
READ_BURST = 8  # receives on one connection before the others have their turn
FULL_READ_BYTES = 131072  # a receive of less has most likely emptied the socket


class Receiver:
    """Stage 0 of the inbound ring."""

    name = "inbound"

    def __init__(
        self, attachment: Attachment, connection_list: ConnectionList, outbound: Sender, arguments: argparse.Namespace
    ) -> None:
        self._outbound = outbound
        self._counters = attachment.page.counters
        self._bell = attachment.doorbells[self.name]
        (self._port,) = attachment.ports(self.name, "inbound")
        limit = framing.COMPAT_LENGTH_LIMIT if attachment.settings["compat"] else framing.LENGTH_LIMIT
        self._intake = FrameReader(self._port, limit)
        self._epoll = select.epoll()
        self._events: list[tuple[int, int]] = []
        self._ahead: list[Connection] = []  # something of them arrived with their greeting
        self._pending: dict[Connection, None] = {}  # something of them is in their channel
        self._paused: list[PeerReceiver] = []  # those beyond their rate
        self._ring_full = False
        self._woken = 0
        self._next_tick = 0
        self.lives = ConnectionManager(attachment, connection_list, outbound, arguments, self._epoll, self)

    # -- the duty

    def work(self) -> int:
        """Serve what has more to read, the events of the last wait, and the clock."""
        done = 0
        if self._ahead:
            self._read_ahead()
        for connection in self._to_be_read_inside():
            del self._pending[connection]
            done += self._serve(connection)
        connections = self.lives.connections
        for fd, _ in self._events:
            connection = connections.get(fd)
            if connection is not None and connection.state is ESTABLISHED:
                done += self._serve(connection)
            else:
                self.lives.serve(fd)
        self._events = []
        now = time.monotonic_ns()
        if self._paused:
            self._resume(now)
        door = self.lives.door
        if door is not None and 0 < door.opens_at <= now:
            door.open()
        if now >= self._next_tick:
            self._next_tick = now + TICK_NS
            self.lives.tick(now, self._ring_full)
        return MORE if not self._ring_full and self._to_be_read_inside() else DONE if done else NOTHING

    def wait(self, seconds: float) -> None:
        if self._ring_full:
            self._bell.wait(self._port.ready, seconds)
            self._ring_full = not self._port.ready()
        self._events = self._epoll.poll(0 if self._ring_full else seconds)
        if self._events:
            now = time.monotonic_ns()
            if now - self._woken > QUIET_NS:
                self._port.wake_ahead()
            self._woken = now

    def drained(self) -> bool:
        """End once the outbound duty has sent what there was: then say goodbye to every peer."""
        if not self._outbound.ended:
            return False
        self.lives.say_goodbye()
        return True

    def _to_be_read_inside(self) -> list[Connection]:
        """Those with something in their channel; of whoever is beyond his rate, it waits."""
        return [each for each in self._pending if not self.lives.peers[each.peer].paused]

    # -- connections come and go

    def came(self, connection: Connection, ahead: bytes) -> None:
        if ahead:
            connection.stash = ahead
            self._ahead.append(connection)
            self._read_ahead()
        if connection.channel is not None and connection.channel.pending:
            self._pending[connection] = None

    def went(self, connection: Connection) -> None:
        self._pending.pop(connection, None)
        self._intake.forget(connection)

    # -- what they say

    def _serve(self, connection: Connection) -> int:
        """Read an established connection. Bytes."""
        try:
            return self._read(connection)
        except PeerError as error:
            self._end_for(connection, error)
        except EOFError:
            self.lives.close(connection, connection.last_error or "closed by the peer")
        except OSError as error:
            self.lives.close(connection, connection.last_error or printable(error.strerror or str(error)))
        return 0

    def _read(self, connection: Connection) -> int:
        intake = self._intake
        channel = connection.channel
        total = 0
        try:
            for _ in range(READ_BURST):
                free = self._port.ready()
                if not free:
                    self._ring_full = True
                    self._counters[ID["tcp.ring_full_waits"]] += 1
                    connection.last_received_ns = time.monotonic_ns()  # silent by our own fault
                    break
                received = intake.read(connection, free)
                if not received:
                    raise EOFError
                total += received
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

    def _read_ahead(self) -> None:
        """Hand on what arrived together with a greeting, as soon as a slot is free."""
        while self._ahead and self._port.ready():
            connection = self._ahead.pop()
            if connection.state is ESTABLISHED:
                size = len(connection.stash)
                try:
                    self._intake.prefill(connection)
                    self._count(connection, size)
                except PeerError as error:
                    self._end_for(connection, error)

    def _count(self, connection: Connection, size: int) -> None:
        now = time.monotonic_ns()
        connection.last_received_ns = now
        connection.received_bytes += size
        counters = self._counters
        counters[_BYTES_RECEIVED] += size
        counters[_FRAMES_RECEIVED] += self._intake.frames
        self._intake.frames = 0
        self.lives.received(connection, size)
        peer = self.lives.peers[connection.peer]
        peer.bucket.take(size, now)
        if not peer.paused and not peer.bucket.ready(now):
            self._pause(peer)

    def _end_for(self, connection: Connection, error: PeerError) -> None:
        self._counters[ID["tcp.closed_frame_too_long"]] += 1
        self.lives.close(connection, printable(str(error)))

    # -- their rates

    def _pause(self, peer: PeerReceiver) -> None:
        peer.paused = True
        self._paused.append(peer)
        self._counters[ID["tcp.rate_pauses"]] += 1
        for connection in peer.established:
            self._epoll.modify(connection.fd, 0)

    def _resume(self, now: int) -> None:
        for peer in self._paused:
            if peer.bucket.ready(now):
                peer.paused = False
                for connection in peer.established:
                    connection.last_received_ns = now  # silent by our own fault
                    self._epoll.modify(connection.fd, EVENTS)
        self._paused = [peer for peer in self._paused if peer.paused]


_BYTES_RECEIVED = ID["tcp.bytes_received"]
_FRAMES_RECEIVED = ID["tcp.frames_received"]
