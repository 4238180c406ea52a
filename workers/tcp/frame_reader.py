"""From the streams of several connections into the slots of one ring.

A slot handed on holds whole frames of one connection. A frame that is not whole yet stays in the slot in hand, and
its next bytes are received right behind it; what comes after it in the stream lands at the start of the next slot.
So under load no byte is copied. Only when another connection has something to say does the one that holds the
slot leave: its unfinished frame moves into its stash, and back when its turn comes.

A killed worker loses the slot in hand, which nobody has seen, and its connections, whose packets the inner
protocols repeat.
"""

from __future__ import annotations

from pipeline.errors import PeerError
from pipeline.runtime.port import Port
from pipeline.shm.layout import SLOT_HEADER_BYTES, SLOT_TRAFFIC_CLASS_AT
from pipeline.shm.slot import MARKS, SLOT
from pipeline.transport.connection import Connection
from pipeline.wire import framing

START = SLOT_HEADER_BYTES

_pack_slot = SLOT.pack_into
_pack_marks = MARKS.pack_into


class FrameReader:
    """Stage 0 of an inbound ring. `limit`: the longest frame (length field) that a peer may send."""

    def __init__(self, port: Port, limit: int) -> None:
        self._port = port
        self._limit = limit
        self._room = port.ring.slot_bytes
        self._holder: Connection | None = None
        self._end = START  # end of the holder's bytes in the slot in hand
        self._quiet = 0  # slots handed on since those that take runs were kicked
        self._quiet_most = max(1, port.ring.capacity // 4)
        self.frames = 0  # frames handed on, for the caller's counter

    def read(self, connection: Connection, free: int) -> int:
        """Receive once, hand on what is whole. Bytes received; 0 at the end of the stream.

        `free`: slots that are free, at least one. BlockingIOError if nothing is there, PeerError on a frame above the
        limit, OSError if the connection is broken.
        """
        if self._holder is not connection:
            self._switch(connection)
        port = self._port
        slot = port.slot()
        end = self._end
        need = connection.need
        if connection.channel is not None:
            until = START + need if need else len(slot)
            received = connection.channel.receive(slot[end:until])
            end += received
            if need and end == until:
                self._hand_on(slot, until, connection, 1, slot[START + 4] == framing.RUN)
                end = START
        elif need and free > 1:
            # the rest of the frame in hand, and whatever follows it straight into the next slot
            until = START + need
            received = connection.socket.recvmsg_into((slot[end:until], port.slot(1)[START:]))[0]
            end += received
            if end >= until:
                self._hand_on(slot, until, connection, 1, slot[START + 4] == framing.RUN)
                free -= 1
                end += START - until
        else:
            received = connection.socket.recv_into(slot[end:])
            end += received
        self._end = end
        if end > START and received:
            self._sort(connection, free)
        return received

    def prefill(self, connection: Connection) -> None:
        """Hand on what is whole in the connection's stash: bytes that arrived behind its greeting. One slot is free."""
        if self._holder is not connection:
            self._switch(connection)
            self._sort(connection, self._port.ready())

    def forget(self, connection: Connection) -> None:
        """The connection has ended: its unfinished frame is worth nothing."""
        if self._holder is connection:
            self._holder = None
            self._end = START
        connection.stash = b""

    def _switch(self, connection: Connection) -> None:
        holder = self._holder
        slot = self._port.slot()
        if holder is not None:
            holder.stash = bytes(slot[START : self._end])
        stash = connection.stash
        self._end = START + len(stash)
        slot[START : self._end] = stash
        connection.stash = b""
        self._holder = connection

    def _sort(self, connection: Connection, free: int) -> None:
        """Hand on the whole frames in the slot in hand; an unfinished one moves to the start of the next slot."""
        slot = self._port.slot()
        end = self._end
        whole, need, frames, runs = framing.scan(slot, START, end, self._limit)
        if not frames:
            connection.need = need - START if need else 0
            return
        rest = b""
        if whole != end:
            if free > 1:
                self._port.slot(1)[START : START + end - whole] = slot[whole:end]
            else:
                rest = bytes(slot[whole:end])
        self._hand_on(slot, whole, connection, frames, runs)
        connection.need = need - whole if need else 0
        self._end = START + end - whole
        if rest:  # the ring is full now: the tail waits in the stash until there is a slot again
            connection.stash = rest
            self._holder = None
            self._end = START

    def _hand_on(self, slot: memoryview, end: int, connection: Connection, frames: int, runs: int) -> None:
        _pack_slot(slot, 0, START, end - START, connection.stamped_lane, connection.peer_handle)
        _pack_marks(slot, SLOT_TRAFFIC_CLASS_AT, connection.traffic_class, 0)
        self._port.advance(1)
        self._quiet += 1
        if runs or self._quiet >= self._quiet_most:  # slots without runs the fec workers pass over, some at a time
            self._quiet = 0
            self._port.kick_rest()
        self.frames += frames
        connection.need = 0


def receive_greeting(connection: Connection, limit: int) -> bytes:
    """Receive until the first frame of the connection's greeting is whole: then that frame, taken out.

    BlockingIOError if it is not there yet, EOFError at the end of the stream, PeerError on a frame that is no greeting
    by its length.
    """
    buffer = connection.exchange.buffer
    while (frame := _first_frame(buffer, limit)) is None:
        data = connection.receive(limit)
        if not data:
            raise EOFError
        buffer += data
    return frame


def _first_frame(buffer: bytearray, limit: int) -> bytes | None:
    if len(buffer) < framing.LENGTH.size:
        return None
    (length,) = framing.LENGTH.unpack_from(buffer, 0)
    end = framing.LENGTH.size + length
    if length > limit:
        raise PeerError(f"greeting of {length} bytes, at most {limit} allowed")
    if len(buffer) < end:
        return None
    frame = bytes(buffer[:end])
    del buffer[:end]
    return frame
