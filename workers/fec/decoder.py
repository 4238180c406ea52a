"""The inbound duty of a fec worker: the runs of its streams become blocks in its lane's decoded ring.

1. wait       sleep on the doorbell until a slot is ready, or until a block has waited long enough for one before it
2. work       visit ready slots first, unless the decoded ring is full: the more runs have come, the fewer shards need
              recovery
3. _add_runs  find the runs in a slot, and give those of this worker's streams to the reassembly of their peer
4. _deliver   fill free slots of the decoded ring, a fair share of them for each peer, and hand them on
5. pop        called by _deliver: the reassembly recovers missing shards, checks the block, gives blocks in their order

A stream belongs to the worker of the lane that answers to the stream's lane (`pipeline.policy.lane_pairs`).
"""

from __future__ import annotations

import time

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.fec.reassembly import BYTES_LIMIT, BYTES_LIMIT_OF_MANY, Reassembly
from pipeline.fec.reorder import TORN_NS
from pipeline.policy.lane_pairs import own_lane
from pipeline.policy.ring_shares import RingShares
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import any_ready
from pipeline.runtime.worker import MORE, NOTHING, Attachment
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.slot import read_header, read_marks, write_header
from pipeline.wire import framing

SLOTS_AT_ONCE = 16  # of a ring in one step: then the heartbeat, and the other rings, have their turn

_BLOCK_AT = layout.SLOT_HEADER_BYTES  # of a block in the decoded ring: no header will be put in front of it

_frame_at = framing.FRAME.unpack_from

_SLOT_SPOILT = ID["fec.dropped_slot_spoilt"]


class Decoder:
    """The decoder of one lane, with a reassembly for each peer that has sent shards lately."""

    name = "inbound"

    def __init__(self, attachment: Attachment) -> None:
        self._ports = attachment.ports(self.name, "inbound")
        (self._decoded,) = attachment.ports(self.name, "decoded")
        self._doorbell = attachment.doorbells[self.name]
        self._lane = attachment.worker.lane
        self._lanes = attachment.plan.lanes
        self._counters = attachment.page.counters
        self._codec = Codec()
        self._capacity = attachment.peer_table.capacity
        self._sealed = attachment.settings.seals
        self._recoveries = attachment.peer_table.recoveries[self._lane]
        self._bytes_limit = BYTES_LIMIT if self._capacity == 1 else BYTES_LIMIT_OF_MANY
        self._peers: dict[int, Reassembly] = {}  # by peer handle
        is_successor = any(port.cursor for port in self._ports)
        self._torn_until_ns = time.monotonic_ns() + TORN_NS if is_successor else 0
        self._links = LinkView(attachment)
        self._is_client = attachment.plan.mode == "client"
        self._ready = any_ready(self._ports)
        self._shares = RingShares(self._decoded.ring.capacity) if attachment.peer_table.capacity > 1 else None
        self._blocked_at = -1  # free slots of the decoded ring when blocks had to wait for more; -1: none had to

    def wait(self, seconds: float) -> None:
        due = min([due for reassembly in self._peers.values() if (due := reassembly.due())], default=0)
        if due:
            seconds = max(0.0, min(seconds, (due - time.monotonic_ns()) / 1e9))
        self._doorbell.wait(self._ready if self._blocked_at < 0 else self._has_more_room, seconds)

    def _has_more_room(self) -> bool:
        """Whether blocks that wait may find room now, or runs have come that can be taken meanwhile."""
        return self._decoded.ready() > self._blocked_at or (self._blocked_at > 0 and self._ready() > 0)

    def work(self) -> int:
        """Visit ready slots, unless the decoded ring is full; then deliver blocks."""
        now = time.monotonic_ns()
        done = 0
        if self._decoded.ready():
            for port in self._ports:
                ready = min(port.ready(), SLOTS_AT_ONCE)
                for ahead in range(ready):
                    self._add_runs(port.slot(ahead), now)
                if ready:
                    port.advance(ready)
                    done += ready
        done += self._deliver(now)
        return MORE if done else NOTHING

    def drained(self) -> bool:
        return True

    def _add_runs(self, slot: memoryview, now: int) -> None:
        at, length, _, peer_handle = read_header(slot)
        light = bool(read_marks(slot)[0] & framing.LIGHT)
        end = at + length
        if end > len(slot) or peer_handle & PEER_INDEX_MASK >= self._capacity:
            self._counters[_SLOT_SPOILT] += 1
            return
        while end - at > 4:
            length, kind = _frame_at(slot, at)
            if at + 4 + length > end:
                self._counters[_SLOT_SPOILT] += 1
                return
            if kind == framing.RUN and self._is_ours(slot, at, length, peer_handle, light):
                reassembly = self._peers.get(peer_handle) or self._add_peer(peer_handle)
                reassembly.add_run(slot, at, length, now)
            at += 4 + length

    def _is_ours(self, slot: memoryview, at: int, length: int, peer_handle: int, light: bool) -> bool:
        """Whether a run is for this decoder."""
        if shard.is_whole(slot, at, length, self._sealed, light):
            return False
        if self._lanes == 1:
            return True
        told = shard.lane_of(slot, at, length, self._sealed)
        return own_lane(told, peer_handle & PEER_INDEX_MASK, self._lanes) == self._lane

    def _add_peer(self, peer_handle: int) -> Reassembly:
        """A new reassembly. That of an earlier session of the peer ends: else each session would use memory.

        A client goes to another server while blocks of the one before still come, so it keeps the latest of these.
        """
        index = peer_handle & PEER_INDEX_MASK
        earlier = sorted(each for each in self._peers if each < peer_handle and each & PEER_INDEX_MASK == index)
        for each in earlier[:-1] if self._is_client else earlier:
            del self._peers[each]
        reassembly = self._peers[peer_handle] = Reassembly(
            self._codec,
            self._counters,
            self._bytes_limit,
            self._torn_until_ns,
            self._recoveries,
            index,
            self._sealed,
            self._links.state(index).has_paths,
        )
        return reassembly

    def _deliver(self, now: int) -> int:
        """Put blocks into the free slots of the decoded ring; their number. Idle reassemblies end."""
        decoded = self._decoded
        free = decoded.ready()
        done = 0
        idle = []
        self._blocked_at = -1 if free else 0
        share = -(-free // max(1, len(self._peers)))  # so that no peer takes the whole ring
        for peer_handle, reassembly in self._peers.items():
            until = min(free, done + share)
            while done < until:
                if self._shares is not None:
                    self._shares.follow(free - done)
                    if not self._shares.may_add(peer_handle):
                        self._blocked_at = free - done
                        break
                block = reassembly.pop(now)
                if block is None:
                    if reassembly.is_idle(now):
                        idle.append(peer_handle)
                    break
                slot = decoded.slot(done)
                at = _BLOCK_AT
                if reassembly.header:
                    at += len(reassembly.header)
                    slot[_BLOCK_AT:at] = reassembly.header
                end = at + len(block)
                slot[at:end] = block
                write_header(slot, _BLOCK_AT, end - _BLOCK_AT, 0, peer_handle, reassembly.traffic_class)
                if self._shares is not None:
                    packets = framing.scan(slot, _BLOCK_AT, end, framing.LENGTH_LIMIT)
                    self._shares.add(peer_handle, len(block) + packets[-1])
                done += 1
        for peer_handle in idle:
            del self._peers[peer_handle]
        if done:
            decoded.advance(done)
        return done
