"""A port in front of a group, where there are several lanes: it kicks the members that its slots concern.

    outbound rings    the tcp or dgram workers that send the slot: its consumer, or those in its run table
    inbound rings     the tun worker that is its consumer, those whose light runs are in it, and the fec workers whose
                      runs are in it

All others have nothing to do but pass the slot over. They sleep on, and are kicked once in a quarter of the ring: the
ring has room again when the slowest member has moved on. A slot of nobody kicks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from pipeline.fec import shard
from pipeline.policy.lane_pairs import own_lane
from pipeline.runtime.plan import StagePosition
from pipeline.runtime.port import Port
from pipeline.shm.doorbell import Doorbell
from pipeline.shm.layout import PEER_INDEX_MASK, RUNS_MAX
from pipeline.shm.ring import Ring, StageView
from pipeline.shm.slot import read_header, read_header_and_runs, read_marks, read_runs
from pipeline.wire import framing

FROM_THE_NETWORK = ("inbound", "arrived")
"""Kinds of rings in front of the tun workers."""

_OF_NOBODY = (framing.PADDING, framing.KEEPALIVE)

_frame_at = framing.FRAME.unpack_from


def senders(slot: memoryview) -> Collection[int]:
    """The positions of the tcp and dgram workers that send an outbound slot."""
    _, _, consumer, _, runs = read_header_and_runs(slot)
    return {row[0] for row in read_runs(slot, runs)} if 0 < runs <= RUNS_MAX else (consumer,)


def writers(slot: memoryview, sealed: bool, lanes: int) -> Collection[int]:
    """The positions of the tun workers that an inbound slot is for: its consumer, and of light flows those whose runs
    are in it."""
    consumer = read_header(slot)[2]
    if not read_marks(slot)[0] & framing.LIGHT:
        return (consumer,)
    found = set()
    for at, length, kind in _frames(slot):
        if kind == framing.RUN:
            if shard.is_whole(slot, at, length, sealed, True):
                found.add(_lane_of_run(slot, at, length, sealed, lanes))
        elif kind not in _OF_NOBODY:
            found.add(consumer)
    return found


def decoders(slot: memoryview, sealed: bool, lanes: int) -> Collection[int]:
    """The positions of the fec workers whose runs are in an inbound slot."""
    light = bool(read_marks(slot)[0] & framing.LIGHT)
    return {
        _lane_of_run(slot, at, length, sealed, lanes)
        for at, length, kind in _frames(slot)
        if kind == framing.RUN and not shard.is_whole(slot, at, length, sealed, light)
    }


def _frames(slot: memoryview) -> Iterator[tuple[int, int, int]]:
    """Each frame of a slot: where it is, its length, its type."""
    at, size, _, _ = read_header(slot)
    end = min(at + size, len(slot))
    while end - at >= framing.FRAME.size:
        length, kind = _frame_at(slot, at)
        if length:
            yield at, length, kind
        at += framing.LENGTH.size + length


def _lane_of_run(slot: memoryview, at: int, length: int, sealed: bool, lanes: int) -> int:
    peer = read_header(slot)[3] & PEER_INDEX_MASK
    return own_lane(shard.lane_of(slot, at, length, sealed), peer, lanes)


class GroupPort(Port):
    """`concerned`: positions among the ordinary members of the next stage; `concerned_rarely`: among the others."""

    def __init__(
        self,
        ring: Ring,
        position: StagePosition,
        lane: int,
        after: list[Doorbell],
        rarely: list[Doorbell],
        on_mended: Callable[[Port], None],
        concerned: Callable[[memoryview], Collection[int]],
        concerned_rarely: Callable[[memoryview], Collection[int]],
    ) -> None:
        super().__init__(ring, position, lane, after, rarely, on_mended)
        self._concerned = concerned
        self._concerned_rarely = concerned_rarely
        self._next: Collection[int] = range(len(after))  # those that the next slot concerns, most likely

    def advance(self, count: int) -> None:
        found = self._concerned(self.slot())
        if count > 1:
            found = set(found).union(*(self._concerned(self.slot(ahead)) for ahead in range(1, count)))
        StageView.advance(self, count)
        self._next = found
        self._unkicked += count
        self._kick(self._after, found)
        if self._unkicked >= self._unkicked_max:
            self._unkicked = 0
            self._kick_all()

    def advance_one(self, concerns_all: bool) -> None:
        found = self._concerned_rarely(self.slot()) if concerns_all else ()
        self.advance(1)
        self._kick(self._rarely, found)

    def wake_ahead(self) -> None:
        self._kick(self._after, self._next)

    def _kick(self, doorbells: Sequence[Doorbell], found: Collection[int]) -> None:
        for position in found:
            if position < len(doorbells):
                doorbells[position].kick()

    def _kick_all(self) -> None:
        for doorbell in (*self._after, *self._rarely):
            doorbell.kick()
