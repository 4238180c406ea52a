"""The fec worker: blocks into shards on their way out, shards into blocks on their way in.

    outbound    wait on the doorbell -> for each block of the coded and the transit ring: cut, parity behind it in the
                slot, frame headers and the table of runs in front -> hand on to the tcp workers; a block too small to
                be cut goes out twice; one for a peer whose connections call for no parity goes on as it is
    inbound     wait on the doorbell or on a straggler's time -> for each frame of this worker's streams: into its
                peer's reassembly -> blocks that may go on into the decoded ring

A stream belongs to the worker whose lane is the stream's modulo the number of lanes. The tun worker has numbered the
blocks, for each peer and stream, so a successor numbers the slot in hand as its predecessor did.
"""

from __future__ import annotations

import argparse
import time

from pipeline.counters import ID
from pipeline.fec import shard, stripe
from pipeline.fec.codec import Codec
from pipeline.fec.reassembly import BYTES_LIMIT, BYTES_LIMIT_OF_MANY, Reassembly
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import any_ready
from pipeline.runtime.worker import MORE, NOTHING, Attachment, Duty
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.slot import MARKS, NO_NUMBER, RUN_ROW, RUN_TABLE_HEADER, SLOT
from pipeline.wire import framing

BURST_BLOCKS = 4
"""Blocks coded before they are handed on together."""

SHAPES_MOST = 4096
"""Sizes of blocks whose cut is remembered."""

START = layout.SLOT_HEADER_BYTES


def duties(attachment: Attachment, arguments: argparse.Namespace) -> list[Duty]:
    """The two duties of a fec worker."""
    return [Encoder(attachment), Decoder(attachment)]


class Encoder:
    """The encoder of this lane's coded and transit rings."""

    name = "outbound"

    def __init__(self, attachment: Attachment) -> None:
        self._ports = attachment.ports(self.name, "coded") + attachment.ports(self.name, "transit")
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._ways = LinkView(attachment)
        self._codec = Codec()
        run, lane = int(attachment.plan.run_id, 16), attachment.me.lane
        # what comes from TUN and what comes from peers is numbered by two duties
        self._streams = [
            {
                traffic_class: shard.stream(run ^ turn, lane, traffic_class)
                for traffic_class in (framing.BULK, framing.LIGHT)
            }
            for turn in range(len(self._ports))
        ]
        self._ready = any_ready(self._ports)
        self._alone = ((lane, 0),)
        self._data = attachment.settings["fec_data"]
        self._cuts: dict[tuple[int, int, int], tuple[int, int, int]] = {}

    def work(self) -> int:
        """Cut what is ready, a few at a time."""
        found = NOTHING
        for port, streams in zip(self._ports, self._streams, strict=True):
            ready = min(port.ready(), BURST_BLOCKS)
            for ahead in range(ready):
                self._cut(port.slot(ahead), streams)
            if ready:
                port.advance(ready)
                found = MORE
        return found

    def wait(self, seconds: float) -> None:
        self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        return True

    def _cut(self, slot: memoryview, streams: dict[int, int]) -> None:
        start, size, _, peer_handle = _unpack_slot(slot)
        traffic_class, turn = _unpack_marks(slot, layout.SLOT_TRAFFIC_CLASS_AT)
        peer = peer_handle & PEER_INDEX_MASK
        parity = self._ways.parity(peer)
        if not parity or turn == NO_NUMBER:
            RUN_TABLE_HEADER.pack_into(slot, layout.SLOT_RUNS_AT, 0, 0, 0)
            return
        over = (
            self._ways.for_light(peer) if traffic_class == framing.LIGHT else self._ways.for_bulk(peer)
        ) or self._alone
        n, m, each = self._shape(size, parity, len(over))
        checksum = 0
        if n == 1:
            step = 0  # the shards are one and the same
            runs = [(*over[(turn + copy) % len(over)], copy, 1) for copy in range(1 + m)]
        else:
            step = each
            end = start + n * each
            slot[start + size : end] = bytes(end - start - size)
            area = slot[start : end + m * each]
            self._codec.encode(area, n, m, each)
            checksum = self._codec.checksum(area, n, m, each)
            runs = stripe.spread(n + m, each, over, turn)
        stream = streams[traffic_class]
        row_at, head_at = layout.SLOT_TABLE_AT, layout.SLOT_HEADS_AT
        for member, ordinal, first, count in runs:
            length = count * each
            _pack_run(slot, head_at, _RUN_REST + length, framing.RUN, stream, turn, n, m, first, count, size, checksum)
            _pack_row(slot, row_at, member, ordinal, count, head_at, start + first * step, length)
            row_at += layout.RUN_ROW_BYTES
            head_at += layout.RUN_HEAD_BYTES
        sparer = over[turn % len(over)][0]
        RUN_TABLE_HEADER.pack_into(slot, layout.SLOT_RUNS_AT, len(runs), m, sparer)
        counters = self._counters
        counters[_BLOCKS_CODED] += 1
        counters[_BYTES_CODED] += size
        counters[_BYTES_ADDED] += m * each

    def _shape(self, size: int, parity: int, connections: int) -> tuple[int, int, int]:
        """Data shards, parity shards and bytes of a shard."""
        found = self._cuts.get((size, parity, connections))
        if found is None:
            if len(self._cuts) >= SHAPES_MOST:
                self._cuts.clear()
            n = shard.data_shards(size, self._data) if parity else 1
            m = shard.parity_shards(n, parity, connections) if n > 1 else min(parity, 1, connections - 1)
            found = self._cuts[size, parity, connections] = n, m, shard.shard_bytes(size, n, m)
        return found


class Decoder:
    """The decoder of the streams that are this worker's; a reassembly for each peer that sends shards."""

    name = "inbound"

    def __init__(self, attachment: Attachment) -> None:
        self._ports = attachment.ports(self.name, "inbound")
        (self._out,) = attachment.ports(self.name, "decoded")
        self._bell = attachment.doorbells[self.name]
        self._lane = attachment.me.lane
        self._lanes = len(attachment.plan.of_kind("fec"))
        self._counters = attachment.page.counters
        self._codec = Codec()
        self._bytes_limit = BYTES_LIMIT if attachment.peers.capacity == 1 else BYTES_LIMIT_OF_MANY
        self._peers: dict[int, Reassembly] = {}  # by seat, those that have sent shards lately
        self._ready = any_ready(self._ports)
        self._full = False

    def work(self) -> int:
        """Take every ready slot, then hand on: what has come together needs less recovery."""
        now = time.monotonic_ns()
        done = 0
        self._full = not self._out.ready()
        if not self._full:
            for port in self._ports:
                ready = port.ready()
                for ahead in range(ready):
                    self._take(port.slot(ahead), now)
                if ready:
                    port.advance(ready)
                    done += ready
        done += self._hand_on(now)
        return MORE if done else NOTHING

    def wait(self, seconds: float) -> None:
        due = min([due for reassembly in self._peers.values() if (due := reassembly.due())], default=0)
        if due:
            seconds = max(0.0, min(seconds, (due - time.monotonic_ns()) / 1e9))
        self._bell.wait(self._out.ready if self._full else self._ready, seconds)

    def drained(self) -> bool:
        return True

    def _take(self, slot: memoryview, now: int) -> None:
        at, length, _, peer_handle = _unpack_slot(slot)
        lane, lanes = self._lane, self._lanes
        end = at + length
        while end - at > 4:
            length, kind = _frame_at(slot, at)
            if kind == framing.RUN:
                short = length < _LANE_BYTE_AT  # has no lane: counted as malformed by the first worker
                if (0 if short else slot[at + _LANE_BYTE_AT] >> 1) % lanes == lane:
                    reassembly = self._peers.get(peer_handle) or self._begin(peer_handle)
                    reassembly.take(slot, at, length, now)
            at += 4 + length

    def _begin(self, peer_handle: int) -> Reassembly:
        for earlier in [
            each
            for each in self._peers
            if each < peer_handle and each & PEER_INDEX_MASK == peer_handle & PEER_INDEX_MASK
        ]:
            del self._peers[earlier]  # else each session of one who comes again and again would have its memory
        reassembly = self._peers[peer_handle] = Reassembly(self._codec, self._counters, self._bytes_limit)
        return reassembly

    def _hand_on(self, now: int) -> int:
        out = self._out
        free = out.ready()
        done = 0
        gone = []
        share = -(-free // max(1, len(self._peers)))  # nobody's blocks take all of the ring
        for peer_handle, reassembly in self._peers.items():
            until = min(free, done + share)
            while done < until:
                found = reassembly.pop(now)
                if found is None:
                    if reassembly.idle(now):
                        gone.append(peer_handle)
                    break
                slot = out.slot(done)
                end = START + len(found)
                slot[START:end] = found
                _pack_slot(slot, 0, START, len(found), 0, peer_handle)
                _pack_marks(slot, layout.SLOT_TRAFFIC_CLASS_AT, reassembly.traffic_class, 0)
                done += 1
        for peer_handle in gone:
            del self._peers[peer_handle]
        if done:
            out.advance(done)
        return done


_unpack_slot = SLOT.unpack_from
_pack_slot = SLOT.pack_into
_pack_marks = MARKS.pack_into
_unpack_marks = MARKS.unpack_from
_frame_at = framing.FRAME.unpack_from
_pack_run = shard.RUN.pack_into
_pack_row = RUN_ROW.pack_into
_RUN_REST = shard.RUN_BYTES - framing.LENGTH.size
_LANE_BYTE_AT = 8  # the last byte of the stream's number: lane and purpose
_BLOCKS_CODED = ID["fec.blocks_coded"]
_BYTES_CODED = ID["fec.bytes_coded"]
_BYTES_ADDED = ID["fec.bytes_added"]
