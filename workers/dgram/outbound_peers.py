"""The peers to which a dgram worker sends: their paths, and what waits for these.

    a block of               goes
    light flows              onto a path at once
    bulk                     onto a path that has room. If none has, it waits in its ring, and TUN with it; or, with
                             several peers connected or from peer to peer, in the queue of its peer
    a peer without a path    into the queue of its peer; bulk may wait in its ring while that is full. With `carrier`
                             "auto" what is in there goes to the tcp workers

So does what a path that has gone dark was to bring, and has not been reported, however much that is: the path had it
all in memory. Else a queue has `peer_queue_bytes` at most, and nothing stays in it for longer than `hold`: beyond,
blocks are dropped and counted.

A stream stays on one path while the open paths of its peer are the same ones: the other end puts its blocks in order
by path. Paths are spread over the streams by the lane that a stream names.

Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pipeline.counters import ID
from pipeline.datagram.cut import PARTS_MAX
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec.buffer_pool import BufferPool
from pipeline.fec.codec import Codec
from pipeline.fec.shard import DATA_SHARDS_MAX, PARITY_SHARDS_MAX
from pipeline.runtime.worker import Attachment
from pipeline.sealing.kinds import lane_of
from pipeline.shm.layout import (
    DATAGRAM_CUT,
    DATAGRAM_DROPPED,
    DATAGRAM_LOST_SEGMENTS,
    DATAGRAM_RATE,
    DATAGRAM_ROUND_TRIP,
    DATAGRAM_SENT_BYTES,
    DATAGRAM_SENT_SEGMENTS,
    PEER_INDEX_MASK,
    RECORD_WORDS,
)
from workers.dgram.bulk_choice import BulkChoice
from workers.dgram.outbound_path import OutboundPath
from workers.dgram.path import Paths, TakenBack
from workers.dgram.returned_blocks import ReturnedBlocks

MEMORY_MOST = 64 << 20  # bytes of all trains of a worker
TRIM_NS = 10_000_000_000  # without a train, until memory goes back to the system

FULL_BLOCK = 1 << 16
"""Bytes: `status` says how a block of this size is cut."""

TAKEN_BACK_MOST = 64  # blocks on their way to the inbound duty
ROUTES_MOST = 256  # streams of a peer that are remembered

_RETURNED = ID["dgram.blocks_returned"]
_DROPPED_NO_PATH = ID["dgram.dropped_no_path"]
_DROPPED_FULL = ID["dgram.dropped_peer_full"]


RESUMED_SHARE = 0.8
"""Of the pace of a predecessor: it may have been looking for a higher rate (UP of pipeline.policy.datagram_rate)."""


class Waiting(NamedTuple):
    stream: int
    number: int
    epoch: int
    sealed: bytes
    since: int


class OutboundPeer:
    """`routes`: the path of each stream. `size`: bytes that wait."""

    def __init__(self, peer_handle: int) -> None:
        self.peer_handle = peer_handle
        self.record_at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS
        self.routes: dict[int, OutboundPath | None] = {}
        self.light: deque[Waiting] = deque()
        self.bulk: deque[Waiting] = deque()
        self.size = 0

    @property
    def waits(self) -> bool:
        return bool(self.light or self.bulk)


class OutboundPeers:
    """`paths`: all on which something was sent. One that is closed stays while its session lasts: sequences go on."""

    def __init__(self, attachment: Attachment, paths: Paths, now: int) -> None:
        settings = attachment.settings
        self._table = attachment.peer_table
        self._words = attachment.peer_table.datagrams_out[attachment.worker.lane]
        self._counters = attachment.page.counters
        self._queue_bytes = settings.peer_queue_bytes
        self._hold_ns = int(settings.hold * 1e9)
        self._is_client = attachment.plan.mode == "client"
        self._returned = ReturnedBlocks(attachment) if settings.carrier == "auto" else None
        self._left = {
            at: (self._words[at + DATAGRAM_RATE], 1000 * self._words[at + DATAGRAM_ROUND_TRIP])
            for at in range(0, len(self._words), RECORD_WORDS)
        }  # pace and round trip of the process before
        self._choice = BulkChoice(self._table, self._words)
        self._open = paths
        self._version = -1
        self._segmenter = Segmenter(Codec(), attachment.process, PARTS_MAX * (DATA_SHARDS_MAX + PARITY_SHARDS_MAX))
        self._memory = BufferPool(MEMORY_MOST)
        self._used_at = now
        self._several = False
        self._by_handle: dict[int, OutboundPeer] = {}
        self._waiting: dict[OutboundPeer, None] = {}
        self._busy: dict[OutboundPath, None] = {}  # what was sent has not been reported, or something waits to be
        self.paths: dict[tuple[int, int], OutboundPath] = {}  # by peer handle and lane of the other end

    # -- paths come and go

    def follow_paths(self, now: int) -> None:
        if self._open.version == self._version:
            return
        self._version = self._open.version
        for (peer_handle, lane), outbound in self.paths.items():
            path = next((each for each in self._open.of(peer_handle) if each.remote_lane == lane), None)
            if path is outbound.path:
                continue
            self._busy.pop(outbound, None)
            peer = self._peer(peer_handle)
            taken = [Waiting(each.stream, each.number, each.epoch, each.row, now) for each in outbound.go_dark(now)]
            peer.light.extendleft(each for each in reversed(taken) if each.stream & 1)
            peer.bulk.extendleft(each for each in reversed(taken) if not each.stream & 1)
            peer.size += sum(len(each.sealed) for each in taken)
            if taken:
                self._waiting[peer] = None
            if path is not None:
                outbound.use(path)
        for peer in self._by_handle.values():
            peer.routes.clear()
        self._busy.update(dict.fromkeys(self._open_paths()))  # a path may carry segments of another size

    def has_news(self) -> bool:
        """Whether the inbound duty has something to say."""
        if self._open.version != self._version:
            return True
        for outbound in self.paths.values():  # noqa: SIM110 -- asked in a spin, where a generator costs too much
            if outbound.path.reports:
                return True
        return False

    def _open_paths(self) -> list[OutboundPath]:
        return [each for each in self.paths.values() if each.path.is_open]

    def _route(self, peer: OutboundPeer, stream: int, now: int) -> OutboundPath | None:
        """Find the path of a stream."""
        paths = self._open.of(peer.peer_handle)
        found = None
        if paths:
            lane = lane_of(stream)
            path = next((each for each in paths if each.remote_lane == lane), paths[lane % len(paths)])
            key = peer.peer_handle, path.remote_lane
            found = self.paths.get(key)
            if found is None:
                found = OutboundPath(path, self._segmenter, self._memory, self._counters, now)
                self.paths[key] = found
                pace, round_trip = self._left.get(peer.record_at, (0, 0))
                if path.is_resumed and pace and round_trip:
                    found.feedback.resume(int(RESUMED_SHARE * pace / len(paths)), round_trip, now)
        if len(peer.routes) >= ROUTES_MOST:
            peer.routes.clear()
        peer.routes[stream] = found
        return found

    def _peer(self, peer_handle: int) -> OutboundPeer:
        peer = self._by_handle.get(peer_handle)
        if peer is None:
            peer = self._by_handle[peer_handle] = OutboundPeer(peer_handle)
        return peer

    # -- blocks come

    def take(
        self, peer_handle: int, stream: int, number: int, epoch: int, sealed: memoryview, may_wait: bool, now: int
    ) -> bool:
        """Take a block out of its slot. False if it waits there, as it may."""
        peer = self._by_handle.get(peer_handle) or self._peer(peer_handle)
        try:
            path = peer.routes[stream]
        except KeyError:
            path = self._route(peer, stream, now)
        light = stream & 1
        if path is not None:
            is_next = not (peer.light if light else peer.bulk) and (path.takes_light if light else path.has_room())
            if is_next and path.add(stream, number, epoch, sealed, now):
                self._busy[path] = None
                return True
        is_full = peer.size + len(sealed) > self._queue_bytes
        if may_wait and not light and not self._several and (path is not None or is_full):
            return False
        if is_full:
            self._drop(peer, 1, _DROPPED_FULL)
        else:
            queue = peer.light if light else peer.bulk
            queue.append(Waiting(stream, number, epoch, bytes(sealed), now))
            peer.size += len(sealed)
            self._waiting[peer] = None
        return True

    def _drop(self, peer: OutboundPeer, count: int, counter: int) -> None:
        self._counters[counter] += count
        self._words[peer.record_at + DATAGRAM_DROPPED] += count

    # -- what waits

    def feed(self, now: int) -> None:
        """Give what waits to paths that have room, or to the tcp workers."""
        for path in self._busy:
            path.more = False
        for peer in list(self._waiting):
            self._feed(peer, peer.light, now)
            self._feed(peer, peer.bulk, now)
            if not peer.waits:
                del self._waiting[peer]
        if self._returned is not None:
            self._returned.flush()

    def _feed(self, peer: OutboundPeer, queue: deque[Waiting], now: int) -> None:
        while queue:
            stream, number, epoch, sealed, since = queue[0]
            path = peer.routes[stream] if stream in peer.routes else self._route(peer, stream, now)
            if path is not None and (path.takes_light if stream & 1 else path.has_room()):
                gone = path.add(stream, number, epoch, sealed, now)
                self._busy[path] = None
            else:
                gone = path is None and self._give_back(peer, queue[0])
            if not gone:
                if now - since <= self._hold_ns:
                    return
                self._drop(peer, 1, _DROPPED_NO_PATH)
            queue.popleft()
            peer.size -= len(sealed)

    def _give_back(self, peer: OutboundPeer, block: Waiting) -> bool:
        if self._is_client and peer.peer_handle & PEER_INDEX_MASK:
            return self._take_back(peer, block)
        if self._returned is None or not self._returned.put(peer.peer_handle, *block[:4]):
            return False
        self._counters[_RETURNED] += 1
        return True

    def _take_back(self, peer: OutboundPeer, block: Waiting) -> bool:
        """A partner has no connection: the tun worker opens the block, and its packets go by the server."""
        taken_back = self._open.taken_back
        if len(taken_back) >= TAKEN_BACK_MOST:
            return False
        taken_back.append(TakenBack(peer.peer_handle, *block[:4]))
        self._counters[_RETURNED] += 1
        return True

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    # -- bursts

    def send(self, now: int) -> bool:
        """Send on each path in turn. Whether more may go at once."""
        busy = self._busy
        for outbound in self.paths.values():
            if outbound.path.reports:
                busy[outbound] = None
        more = False
        for outbound in list(busy):
            outbound.follow(now)
            more |= outbound.send(now)
            if outbound.is_idle and outbound.path.outstanding_since is None:
                del busy[outbound]
        return more

    def due(self) -> int:
        """When a path may send, or wants to look; 0: none does."""
        return min([due for path in self._busy if (due := path.due())], default=0)

    @property
    def is_idle(self) -> bool:
        return not self.waits and all(path.is_idle for path in self._busy)

    # -- on the clock

    def update(self, now: int) -> None:
        """Publish what is known of each peer, and forget those that have another session now."""
        connected = sum(count > 0 for count in self._table.established_counts()) if self._table.capacity > 1 else 1
        self._several = connected > 1 or (self._is_client and len({key[0] for key in self.paths}) > 1)
        pace: dict[int, int] = {}
        for key, path in list(self.paths.items()):
            self._count(path)
            if not path.path.is_open and not self._is_current(key[0]):
                del self.paths[key]
        limited: dict[int, bool] = {}
        for path in self._open_paths():
            handle = path.path.peer_handle
            limited[handle] = path.is_limit() or limited.get(handle, False)
            at = (handle & PEER_INDEX_MASK) * RECORD_WORDS
            pace[at] = pace.get(at, 0) + int(path.feedback.rate.pacing_rate)
            self._words[at + DATAGRAM_ROUND_TRIP] = path.feedback.smoothed // 1000
            cut = path.cut_of(FULL_BLOCK)
            self._words[at + DATAGRAM_CUT] = cut.n << 8 | cut.m if cut is not None else 0
        for peer_handle, peer in list(self._by_handle.items()):
            self._words[peer.record_at + DATAGRAM_RATE] = pace.get(peer.record_at, 0)
            if not self._open.of(peer_handle) and not (self._is_current(peer_handle) and peer.waits):
                self._drop(peer, len(peer.light) + len(peer.bulk), _DROPPED_NO_PATH)
                del self._by_handle[peer_handle]
                self._waiting.pop(peer, None)
        if self._returned is not None:
            self._choice.update(limited, now)
        if self._memory.used:
            self._used_at = now
        elif self._memory.kept and now - self._used_at > TRIM_NS:
            self._memory.trim()

    def _is_current(self, peer_handle: int) -> bool:
        return self._table.peer_handle(peer_handle & PEER_INDEX_MASK) == peer_handle

    def _count(self, path: OutboundPath) -> None:
        at = (path.path.peer_handle & PEER_INDEX_MASK) * RECORD_WORDS
        size, segments, lost = path.take_counts()
        self._words[at + DATAGRAM_SENT_BYTES] += size
        self._words[at + DATAGRAM_SENT_SEGMENTS] += segments
        if lost >= 0:
            self._words[at + DATAGRAM_LOST_SEGMENTS] += lost
