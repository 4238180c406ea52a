"""The frame reader: it moves the streams of several connections into the slots of one ring.

    1. read              receive once, into the slot in hand; without TLS, what follows an unfinished frame goes
                         straight into the next slot, if that is free
    2. _take_over        only when another connection owned the slot: its unfinished frame moves out, ours moves in
    3. _publish_frames   find the whole frames; an unfinished one moves to the start of the next slot
    4. _publish          write the slot header, pass the slot to the next stage

On a hub of the original program a connection may have a learner (`pipeline.transport.address_learner`). Its frames are
published up to the first with a claim. That frame and all behind it are held back until the supervisor has decided.

A published slot holds whole frames of one connection. The first bytes of an unfinished frame stay in the slot in hand,
and the next bytes are received right behind them; what follows that frame in the stream lands at the start of the next
slot. So under load no byte is copied.

A killed worker loses the slot in hand, which no other duty has seen, and its connections. The protocols inside the
tunnel repeat the packets that are lost with them.

Owned by the inbound duty.
"""

from __future__ import annotations

from pipeline.runtime.port import Port
from pipeline.shm.layout import SLOT_HEADER_BYTES
from pipeline.shm.slot import write_header
from pipeline.transport.connection import Connection
from pipeline.wire import framing

FRAMES_AT = SLOT_HEADER_BYTES

_TYPE_AT = FRAMES_AT + framing.LENGTH.size  # in a slot: the type of the first frame


class FrameReader:
    """Stage 0 of an inbound ring. `limit`: the longest frame (length field) that a peer may send."""

    def __init__(self, port: Port, limit: int) -> None:
        self._port = port
        self._limit = limit
        self._owner: Connection | None = None  # of the slot in hand
        self._end = FRAMES_AT  # end of the owner's bytes in the slot in hand
        self.frames = 0  # frames published; the caller counts them and sets this to 0

    def read(self, connection: Connection, free: int) -> int:
        """Receive once, publish what is whole. Bytes received; 0 at the end of the stream.

        `free`: slots that are free, at least one. BlockingIOError if nothing is there, PeerError on a frame above the
        limit, OSError if the connection is broken.
        """
        if self._owner is not connection:
            self._take_over(connection)
        port = self._port
        slot = port.slot()
        end = self._end
        frame_end = connection.receive.frame_end
        if connection.channel is not None:
            until = FRAMES_AT + frame_end if frame_end else len(slot)
            received = connection.channel.receive(slot[end:until])
            end += received
            if frame_end and end == until:
                self._publish(slot, until, connection, 1, slot[_TYPE_AT] == framing.RUN)
                end = FRAMES_AT
        elif frame_end and free > 1:
            # the rest of the unfinished frame, and whatever follows it straight into the next slot
            until = FRAMES_AT + frame_end
            received = connection.socket.recvmsg_into((slot[end:until], port.slot(1)[FRAMES_AT:]))[0]
            end += received
            if end >= until:
                self._publish(slot, until, connection, 1, slot[_TYPE_AT] == framing.RUN)
                free -= 1
                end += FRAMES_AT - until
        else:
            received = connection.socket.recv_into(slot[end:])
            end += received
        self._end = end
        if end > FRAMES_AT and received:
            self._publish_frames(connection, free)
        return received

    def publish_early(self, connection: Connection) -> None:
        """Publish the whole frames among the bytes that arrived behind the handshake. One slot is free."""
        if self._owner is not connection:
            self._take_over(connection)
            self._publish_frames(connection, self._port.ready())

    def forget(self, connection: Connection) -> None:
        """The connection has ended: its unfinished frame is worth nothing."""
        if self._owner is connection:
            self._owner = None
            self._end = FRAMES_AT
        connection.receive.partial_frame = b""

    def _take_over(self, connection: Connection) -> None:
        """Make a connection the owner of the slot in hand."""
        owner = self._owner
        slot = self._port.slot()
        if owner is not None:
            owner.receive.partial_frame = bytes(slot[FRAMES_AT : self._end])
        partial_frame = connection.receive.partial_frame
        self._end = FRAMES_AT + len(partial_frame)
        slot[FRAMES_AT : self._end] = partial_frame
        connection.receive.partial_frame = b""
        self._owner = connection

    def _publish_frames(self, connection: Connection, free: int) -> None:
        """Publish the whole frames in the slot in hand; an unfinished one moves to the start of the next slot."""
        state = connection.receive
        slot = self._port.slot()
        end = self._end
        whole, frame_end, frames, runs = framing.scan(slot, FRAMES_AT, end, self._limit)
        if state.learner is not None:
            frame_end = 0  # the rest of an unfinished frame must not be published without a look at the whole
            claim_at = state.learner.find_claim(slot, FRAMES_AT, whole)
            if claim_at < whole:
                self._hold_back(connection, claim_at)
                return
        if not frames:
            state.frame_end = frame_end - FRAMES_AT if frame_end else 0
            return
        rest = b""
        if whole != end:
            if free > 1:
                self._port.slot(1)[FRAMES_AT : FRAMES_AT + end - whole] = slot[whole:end]
            else:
                rest = bytes(slot[whole:end])
        self._publish(slot, whole, connection, frames, runs)
        state.frame_end = frame_end - whole if frame_end else 0
        self._end = FRAMES_AT + end - whole
        if rest:  # the ring is full now: the unfinished frame waits outside until there is a slot again
            state.partial_frame = rest
            self._owner = None
            self._end = FRAMES_AT

    def _hold_back(self, connection: Connection, at: int) -> None:
        """Publish the frames in front of slot[at]; what begins there leaves the slot."""
        slot = self._port.slot()
        connection.receive.partial_frame = bytes(slot[at : self._end])
        connection.receive.frame_end = 0
        _, _, frames, runs = framing.scan(slot, FRAMES_AT, at, self._limit)
        if frames:
            self._publish(slot, at, connection, frames, runs)
        self._owner = None
        self._end = FRAMES_AT

    def _publish(self, slot: memoryview, end: int, connection: Connection, frames: int, runs: int) -> None:
        state = connection.receive
        write_header(
            slot, FRAMES_AT, end - FRAMES_AT, state.stamped_lane, connection.peer_handle, connection.traffic_class
        )
        self._port.advance_one(bool(runs))
        self.frames += frames
        state.frame_end = 0
