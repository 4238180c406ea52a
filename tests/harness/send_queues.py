"""Send queues on real sockets that take no more than a test allows, and rings in whose slots their items stand.

A slot that has been handed on is overwritten at once: bytes that are sent too late are wrong on the wire.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, cast

from pipeline.runtime.plan import StagePosition
from pipeline.runtime.port import Port
from pipeline.shm import layout, ring, segment
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.ring import StageView
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.tcp_info import TcpInfo
from pipeline.transport.tls_channel import TlsChannel
from pipeline.wire import framing
from workers.tcp.ring_reader import RingReader
from workers.tcp.send_item import SendItem
from workers.tcp.send_queue import SendQueue

FRAME = struct.Struct(">IBI")  # length of the frame, whether it is light, number
HEADER_AT = 64
BODY_AT = 256
HEADER_BYTES_MAX = BODY_AT - HEADER_AT
READ_BYTES = 1 << 20
TIMED_OUT = TcpInfo(1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class MeteredSocket(socket.socket):
    """Takes `allowance` bytes in all, and then none, as a full socket does."""

    allowance = 1 << 40

    def sendmsg(self, buffers: Iterable[Any], ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        data = b"".join(buffers)[: self.allowance]
        if not data:
            raise BlockingIOError
        sent = super().send(data)
        self.allowance -= sent
        return sent


class Channel:
    """In place of TLS: a record is a length and its bytes reversed, so that nothing is sent as it was."""

    def __init__(self) -> None:
        self.output: list[bytes] = []  # of the channel itself

    @property
    def has_output(self) -> bool:
        return bool(self.output)

    def seal_records(self, pieces: Sequence[bytes | memoryview]) -> list[bytes]:
        pieces, self.output = [*self.output, *pieces], []
        return [struct.pack(">I", len(piece)) + bytes(piece)[::-1] for piece in pieces]

    def seal(self, pieces: Sequence[bytes | memoryview]) -> bytes:
        return b"".join(self.seal_records(pieces))

    @staticmethod
    def opened(data: bytes) -> bytes:
        """The content of the records; an unfinished one at the end does not count."""
        found = b""
        while len(data) >= 4:
            (size,) = struct.unpack_from(">I", data)
            if len(data) < 4 + size:
                break
            found += data[4 : 4 + size][::-1]
            data = data[4 + size :]
        return found


class Stuck(Connection):
    """The kernel waits for an answer beyond its retransmission timeout."""

    def tcp_info(self) -> TcpInfo:
        return TIMED_OUT


class Ends:
    """Connections of one peer, each with a queue; what comes out at the other end is in the test's hand."""

    def __init__(self) -> None:
        self._far: dict[SendQueue, socket.socket] = {}
        self._received: dict[SendQueue, bytes] = {}
        self._serials = itertools.count(1)

    def queue(
        self,
        peer_handle: int = FIRST_PEER_HANDLE,
        traffic_class: int = framing.BULK,
        sealed: bool = False,
        kind: type[Connection] = Connection,
    ) -> SendQueue:
        near, far = socket.socketpair()
        metered = MeteredSocket(near.family, near.type, near.proto, near.detach())
        for sock in (metered, far):
            sock.setblocking(False)
        made = kind(metered, ("192.0.2.1", 9000), ESTABLISHED, next(self._serials), 0)
        made.peer_handle = peer_handle
        made.traffic_class = traffic_class
        if sealed:
            made.channel = cast("TlsChannel", Channel())
        queue = SendQueue(made)
        self._far[queue], self._received[queue] = far, b""
        return queue

    def allow(self, queue: SendQueue, allowance: int) -> None:
        queue.connection.socket.allowance = allowance

    def send(self, queue: SendQueue, allowance: int = 1 << 40) -> int:
        """One send of a queue whose socket takes so much and no more. Bytes that went out."""
        self.allow(queue, allowance)
        try:
            return queue.send()[0]
        except BlockingIOError:
            return 0
        finally:
            self._read(queue)

    def send_all(self, queue: SendQueue) -> None:
        while not queue.idle:
            self.send(queue)

    def wire(self, queue: SendQueue) -> bytes:
        """All that has come out, opened if it was sealed."""
        self._read(queue)
        data = self._received[queue]
        return Channel.opened(data) if queue.connection.channel else data

    def _read(self, queue: SendQueue) -> None:
        try:
            while data := self._far[queue].recv(READ_BYTES):
                self._received[queue] += data
        except BlockingIOError:
            pass

    def close(self) -> None:
        for queue, far in self._far.items():
            queue.connection.socket.close()
            far.close()


class OutboundRing:
    """A ring with one consumer, a tcp worker. Its name is gone at once; the memory goes with the last view of it."""

    def __init__(self, slots: int = 16, lane: int = 0, kind: str = "coded") -> None:
        made = ring.create(f"/tunnel@queuetest@{secrets.token_hex(4)}@ring", 2, slots, 2 * layout.PAGE)
        segment.unlink(made.memory.name)
        self._filler = StageView(made, 0, [1], first=True)
        self.port = Port(made, StagePosition(1, 0, [0], False, [], []), lane, [], [])
        self.reader = RingReader(self.port, kind)

    def slot(
        self, items: Sequence[tuple[bytes, bytes, int]], light: bool = False, skippable: int = 0
    ) -> list[SendItem]:
        """A new slot that has been visited: its items, given (head, body, shards) of each."""
        assert self._filler.ready(), "the ring is full"
        slot, index = self._filler.slot(), self._filler.index()
        head_at, body_at = HEADER_AT, BODY_AT
        made = []
        for head, body, shards in items:
            slot[head_at : head_at + len(head)] = head
            slot[body_at : body_at + len(body)] = body
            made.append(
                SendItem(
                    self.reader,
                    index,
                    shards,
                    light,
                    len(head) + len(body),
                    slot[head_at : head_at + len(head)] if head else None,
                    slot[body_at : body_at + len(body)],
                )
            )
            head_at += len(head)
            body_at += len(body)
        self._filler.advance(1)
        self.reader.scanned += 1
        self.reader.unfinished[index] = len(made)
        self.reader.skippable[index] = skippable
        return made

    def item(self, data: bytes, head: int = 0, shards: int = 0, light: bool = False) -> SendItem:
        """A new slot with one item; the first `head` bytes stand apart from the others."""
        (made,) = self.slot([(data[:head], data[head:], shards)], light)
        return made

    def room(self) -> int:
        return self._filler.ready()

    def release(self) -> int:
        """Hand on what is finished, and overwrite it. The number of slots."""
        before = self.port.cursor
        released = self.reader.release_finished()
        for number in range(before, before + released):
            self.port.ring.slots[number % self.port.ring.capacity][:] = b"\xee" * (2 * layout.PAGE)
        return released


def frame(number: int, size: int = 100, light: bool = False) -> bytes:
    """Bytes that show their length, their class and their number: at least FRAME.size of them."""
    return FRAME.pack(size, light, number) + bytes((number + at) & 0xFF for at in range(size - FRAME.size))


def numbers(wire: bytes) -> list[tuple[bool, int]]:
    """The frames on the wire, (light, number) of each; each has to be whole and as it was made."""
    found = []
    while wire:
        size, light, number = FRAME.unpack_from(wire)
        assert wire[:size] == frame(number, size, bool(light))
        found.append((bool(light), number))
        wire = wire[size:]
    return found
