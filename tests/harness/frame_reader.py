"""A frame reader on a ring of its own, connections before it, a consumer behind it; streams of frames."""

from __future__ import annotations

import functools
import itertools
import secrets
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.policy.ring_shares import RingShares
from pipeline.runtime.plan import StagePosition
from pipeline.runtime.port import Port
from pipeline.shm import layout, ring, segment
from pipeline.shm.ring import StageView
from pipeline.shm.slot import read_header, read_marks
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.tls_context import TlsContext, client_context, server_context
from pipeline.wire import framing
from tests.harness.tls_ends import NAME, End, issue, shake_hands
from workers.tcp.frame_reader import FRAMES_AT, FrameReader

SLOT_BYTES = layout.PAGE
FITS = SLOT_BYTES - FRAMES_AT - framing.LENGTH.size
"""The longest frame (length field) that a slot of this size can take."""

LIMIT = 300


@functools.cache
def contexts() -> tuple[TlsContext, TlsContext]:
    """A client's and a server's."""
    pair = issue(NAME)
    return (
        client_context(ca_pem=pair.certificate, system_cas=False, verify=True),
        server_context(pair.certificate, pair.key),
    )


class Source:
    """The connection of the peer of that number: the peer's end of it, and ours."""

    def __init__(self, number: int, tls: bool) -> None:
        self.peer, ours = socket.socketpair()
        ours.setblocking(False)
        self.secure: End | None = None
        if tls:
            client, server = contexts()
            self.secure, end = End(self.peer, client, server=False), End(ours, server, server=True)
            shake_hands(self.secure, end)
        self.connection = Connection(ours, ("192.0.2.1", 9000 + number), ESTABLISHED, 100 + number, 0)
        self.connection.peer_handle = layout.FIRST_PEER_HANDLE | number
        self.connection.receive.stamped_lane = number + 10
        self.connection.traffic_class = number & 1
        self.connection.channel = end.channel if tls else None

    def send(self, data: bytes) -> None:
        if self.secure is None:
            self.peer.sendall(data)
        elif data:
            self.secure.send(data)

    def close(self) -> None:
        self.peer.close()
        self.connection.socket.close()


class FrameReaderHarness:
    """The reader, `sources` before it, and `slots` behind it: peer and wire bytes of each slot consumed."""

    def __init__(
        self,
        connections: int = 1,
        slots: int = 4,
        limit: int = LIMIT,
        start: int = 0,
        tls: bool = False,
        shared: bool = False,
    ) -> None:
        self.sources = [Source(number, tls) for number in range(connections)]
        name = f"/tunnel@framereadertest@{secrets.token_hex(4)}@ring"
        self.ring = ring.create(name, 2, slots, SLOT_BYTES, start)
        self.port = Port(self.ring, StagePosition(0, 0, [1], True, [], []), 0, [], [])
        self.reader = FrameReader(self.port, limit)
        self.reader.shares = RingShares(slots) if shared else None
        self.consumer = StageView(self.ring, 1, [0])
        self.slots: list[tuple[int, bytes]] = []

    def send(self, number: int, data: bytes) -> None:
        self.sources[number].send(data)

    def read(self, number: int) -> int:
        """Publish what is left inside, or receive once. Bytes received; 1 for bytes that were inside."""
        connection = self.sources[number].connection
        if connection.receive.has_frames:
            self.reader.publish_left(connection, self.port.ready())
            return 1
        return self.reader.read(connection, self.port.ready())

    def read_all(self, number: int) -> None:
        """Read until nothing is there or the ring is full."""
        while self.port.ready():
            try:
                if not self.read(number):
                    return
            except BlockingIOError:
                return

    def consume(self, count: int = 1 << 30) -> int:
        """Consume up to so many slots. Each must name its connection, and hold whole frames of it."""
        consumed = min(count, self.consumer.ready())
        for _ in range(consumed):
            slot = self.consumer.slot()
            start, length, lane, peer_handle = read_header(slot)
            peer = peer_handle & layout.PEER_INDEX_MASK
            connection = self.sources[peer].connection
            assert (start, lane, peer_handle) == (FRAMES_AT, connection.receive.stamped_lane, connection.peer_handle)
            assert read_marks(slot) == (connection.traffic_class, 0)
            self.slots.append((peer, bytes(slot[start : start + length])))
            slot[:] = b"\xdb" * SLOT_BYTES  # a reader that still uses bytes of a published slot loses them
            self.consumer.advance(1)
        return consumed

    def carry(self, number: int, data: bytes) -> None:
        """Bytes through the reader into slots, which are consumed."""
        self.send(number, data)
        self.read_all(number)
        self.consume()

    def frames(self, number: int) -> list[bytes]:
        """The bodies of a connection's frames, without bare ones, of which those that come alone go no further."""
        found = []
        for peer, data in self.slots:
            if peer == number:
                bodies = split(data)
                assert bodies  # no slot is published empty
                found += bodies
        return with_contents(found)

    def close(self) -> None:
        for source in self.sources:
            source.close()
        segment.unlink(self.ring.memory.name)
        self.ring.close()


@contextmanager
def harness_of(**settings: int) -> Iterator[FrameReaderHarness]:
    made = FrameReaderHarness(**settings)
    try:
        yield made
    finally:
        made.close()


def framed(bodies: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


def with_contents(bodies: Sequence[bytes]) -> list[bytes]:
    """Those of frames that are neither empty nor keepalives."""
    return [each for each in bodies if each[:1] not in (b"", b"\x02")]


def split(data: bytes) -> list[bytes]:
    """The bodies of the frames in `data`; there must be nothing but whole frames."""
    bodies, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        assert at + 4 + length <= len(data)
        bodies.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return bodies


def body(number: int, length: int) -> bytes:
    return bytes((number * 7 + i) % 256 for i in range(length))


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds) if a < b]
