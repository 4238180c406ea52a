"""The frame reader: it moves the streams of several connections into the slots of one ring.

    1. read              receive once, into the slot in hand; without TLS, what follows an unfinished frame goes
                         straight into the next slot, if that is free
    2. _take_over        only when another connection owned the slot: its unfinished frame moves out, ours moves in
    3. _publish_frames   find the whole frames; an unfinished one moves to the start of the next slot
    4. _publish          write the slot header, pass the slot to the next stage

On a hub of the original program a connection may have a learner (`pipeline.transport.address_learner`). Its frames are
published up to the first with a claim. That frame and all behind it are held back until the supervisor has decided.

Where peers share the ring (`shares`), a slot holds frames of SLOT_CHARGE at most, or one frame. Those beyond that move
to the next slot as well, and wait for publish_left(). So a peer's tiny frames hold up nobody for long. Frames without
contents alone make no slot: they go no further.

A published slot holds whole frames of one connection. The first bytes of an unfinished frame stay in the slot in hand,
and the next bytes are received right behind them; what follows that frame in the stream lands at the start of the next
slot. So under load no byte is copied.

A killed worker loses the slot in hand, which no other duty has seen, and its connections. The protocols inside the
tunnel repeat the packets that are lost with them.

Owned by the inbound duty.
"""

from __future__ import annotations

from pipeline.fec.shard import COPIES
from pipeline.policy.ring_shares import RingShares
from pipeline.runtime.port import Port
from pipeline.shm.layout import SLOT_HEADER_BYTES
from pipeline.shm.slot import write_header
from pipeline.transport.connection import Connection
from pipeline.wire import charge, framing

FRAMES_AT = SLOT_HEADER_BYTES
SLOT_CHARGE = 1 << 18
"""Charge of the frames in one slot, where peers share the ring: a third of a millisecond of the next duty's time."""

_TYPE_AT = FRAMES_AT + framing.LENGTH.size  # in a slot: the type of the first frame


class FrameReader:
    """Stage 0 of an inbound ring. `limit`: the longest frame (length field) that a peer may send."""

    def __init__(self, port: Port, limit: int) -> None:
        self._port = port
        self._limit = limit
        self._owner: Connection | None = None  # of the slot in hand
        self._end = FRAMES_AT  # end of the owner's bytes in the slot in hand
        self.frames = self.bare = self.charge = self.slots = 0  # since take_counts()
        self.shares: RingShares | None = None  # of the peers in the ring, while there are several
        self.surcharge = 0  # what a slot of the connection's peer will cost beyond its charge

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
        scanner = connection.receive.scanner
        if scanner is not None and scanner.ended:
            return 0
        if connection.channel is not None:
            until = FRAMES_AT + frame_end if frame_end else len(slot)
            received = connection.channel.receive(slot[end:until])
            end += received
            if frame_end and end == until:
                self._publish_one(slot, until, connection)
                end = FRAMES_AT
        elif frame_end and free > 1:
            # the rest of the unfinished frame, and whatever follows it straight into the next slot
            until = FRAMES_AT + frame_end
            received = connection.socket.recvmsg_into((slot[end:until], port.slot(1)[FRAMES_AT:]))[0]
            end += received
            if end >= until:
                self._publish_one(slot, until, connection)
                free -= 1
                end += FRAMES_AT - until
        else:
            received = connection.socket.recv_into(slot[end:])
            end += received
        self._end = end
        if end > FRAMES_AT and received:
            self._publish_frames(connection, free)
        return received

    def publish_left(self, connection: Connection, free: int) -> None:
        """Publish whole frames among the bytes that have arrived before (`has_frames`). At least one slot is free."""
        if self._owner is not connection:
            self._take_over(connection)
        self._publish_frames(connection, free)

    def take_counts(self) -> tuple[int, int, int, int]:
        """Since the last call: whole frames; bare ones among them; their charge, bytes not included; slots filled."""
        counts = self.frames, self.bare, self.charge, self.slots
        self.frames = self.bare = self.charge = self.slots = 0
        return counts

    def forget(self, connection: Connection) -> None:
        """The connection has ended: its unfinished frame is worth nothing."""
        if self._owner is connection:
            self._owner = None
            self._end = FRAMES_AT
        connection.receive.partial_frame = b""
        connection.receive.has_frames = False

    def _take_over(self, connection: Connection) -> None:
        """Make a connection the owner of the slot in hand."""
        owner = self._owner
        slot = self._port.slot()
        if owner is not None:
            owner.receive.partial_frame = bytes(slot[FRAMES_AT : self._end])
        partial_frame = connection.receive.partial_frame
        if self.shares is not None:
            moved = len(partial_frame) + (self._end - FRAMES_AT if owner is not None else 0)
            self.charge += moved // charge.MOVED_BYTES
        self._end = FRAMES_AT + len(partial_frame)
        slot[FRAMES_AT : self._end] = partial_frame
        connection.receive.partial_frame = b""
        self._owner = connection

    def _publish_frames(self, connection: Connection, free: int) -> None:
        """Publish the whole frames in the slot in hand; an unfinished one moves to the start of the next slot."""
        state = connection.receive
        slot = self._port.slot()
        end = self._end
        most = framing.UNBOUNDED if self.shares is None else SLOT_CHARGE
        scan = framing.scan if state.scanner is None else state.scanner.scan
        whole, frame_end, frames, runs, bare, charged = scan(slot, FRAMES_AT, end, self._limit, most)
        state.has_frames = charged >= most
        if state.learner is not None:
            frame_end = 0  # the rest of an unfinished frame must not be published without a look at the whole
            claim_at = state.learner.find_claim(slot, FRAMES_AT, whole)
            if claim_at < whole:
                self._hold_back(connection, claim_at)
                return
        if not frames:
            state.frame_end = frame_end - FRAMES_AT if frame_end else 0
            return
        self.bare += bare
        if bare == frames:
            self._skip(slot, whole, frames, charged)
            state.frame_end = frame_end - whole if frame_end else 0
            return
        rest = b""
        if whole != end:
            if free > 1:
                self._port.slot(1)[FRAMES_AT : FRAMES_AT + end - whole] = slot[whole:end]
            else:
                rest = bytes(slot[whole:end])
        self._publish(slot, whole, connection, frames, runs, charged)
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
        connection.receive.has_frames = False  # until the supervisor has decided
        _, _, frames, runs, bare, charged = framing.scan(slot, FRAMES_AT, at, self._limit)
        self.bare += bare
        if frames > bare:
            self._publish(slot, at, connection, frames, runs, charged)
        self._owner = None
        self._end = FRAMES_AT

    def _skip(self, slot: memoryview, whole: int, frames: int, charged: int) -> None:
        """Nobody needs the frames in slot[FRAMES_AT:whole]: what follows takes their place."""
        end = FRAMES_AT + self._end - whole
        slot[FRAMES_AT:end] = slot[whole : self._end]
        self._end = end
        self.frames += frames
        self.charge += charged

    def _publish_one(self, slot: memoryview, end: int, connection: Connection) -> None:
        """Publish the one frame in a slot."""
        scanner = connection.receive.scanner
        if scanner is not None:
            _, _, frames, runs, bare, charged = scanner.scan(slot, FRAMES_AT, end, self._limit)
            self.bare += bare
            self._publish(slot, end, connection, frames, runs, charged)
        elif self.shares is None:
            is_run = slot[_TYPE_AT] == framing.RUN and slot[_TYPE_AT + 4] < COPIES
            self._publish(slot, end, connection, 1, is_run, 0)
        else:
            _, _, _, runs, bare, charged = framing.scan(slot, FRAMES_AT, end, self._limit)
            self.bare += bare
            self._publish(slot, end, connection, 1, runs, charged)

    def _publish(
        self, slot: memoryview, end: int, connection: Connection, frames: int, runs: int, charged: int
    ) -> None:
        state = connection.receive
        begin = FRAMES_AT if state.scanner is None else state.scanner.begin
        write_header(
            slot,
            begin,
            end - begin,
            state.stamped_lane,
            connection.peer_handle,
            connection.traffic_class,
            connection=connection.serial,
        )
        self._port.advance_one(bool(runs))
        if self.shares is not None:
            self.shares.add(connection.peer, end - FRAMES_AT + charged + self.surcharge)
            self.slots += 1
        self.frames += frames
        self.charge += charged
        state.frame_end = 0
