"""The fec worker: blocks into shards on their way out, shards into blocks on their way in.

    outbound    wait on the doorbell -> for each block of the coded ring: cut, parity behind it in the slot, frame headers
                and the table of runs in front -> hand on to the tcp workers; a block too small to be cut goes out twice
    inbound     wait on the doorbell or on a straggler's time -> for each frame of this worker's streams: into the
                reassembly -> blocks that may go on into the decoded ring

A stream belongs to the worker whose lane is the stream's modulo the number of lanes. Blocks are numbered by the
cursor of the ring, so a successor numbers the slot in hand as its predecessor did.
"""

from __future__ import annotations

import argparse
import time

from pipeline import layout, shard, stripe, wire
from pipeline.block import SLOT
from pipeline.codec import Codec
from pipeline.counters import ID
from pipeline.port import any_ready
from pipeline.reassembly import Reassembly
from pipeline.ways import Ways
from pipeline.worker import MORE, NOTHING, Attachment, Duty

BURST_BLOCKS = 4
"""Blocks coded before they are handed on together."""

SHAPES_MOST = 4096
"""Sizes of blocks whose cut is remembered."""

START = layout.SLOT_HEADER_BYTES


def duties(attachment: Attachment, arguments: argparse.Namespace) -> list[Duty]:
    """The two duties of a fec worker."""
    return [Outbound(attachment), Inbound(attachment)]


class Outbound:
    """The encoder of this lane's coded ring."""

    name = "outbound"

    def __init__(self, attachment: Attachment) -> None:
        (self._port,) = attachment.ports(self.name, "coded")
        self._bell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._ways = Ways(attachment)
        self._codec = Codec()
        self._stream = shard.stream(int(attachment.plan.run, 16), attachment.me.lane, wire.BULK)
        self._alone = ((attachment.me.lane, 0),)
        self._data = attachment.settings["fec_data"]
        self._cuts: dict[tuple[int, int, int], tuple[int, int, int]] = {}

    def work(self) -> int:
        """Cut what is ready, a few at a time."""
        ready = self._port.ready()
        if not ready:
            return NOTHING
        ready = min(ready, BURST_BLOCKS)
        parity = self._ways.parity()
        over = self._ways.for_bulk() or self._alone
        for ahead in range(ready):
            self._cut(self._port.slot(ahead), self._port.cursor + ahead, parity, over)
        self._port.advance(ready)
        return MORE

    def wait(self, seconds: float) -> None:
        self._bell.wait(self._port.ready, seconds)

    def drained(self) -> bool:
        return True

    def _cut(self, slot: memoryview, turn: int, parity: int, over: tuple[tuple[int, int], ...]) -> None:
        start, size, _, _ = _unpack_slot(slot)
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
        number = turn & 0xFFFFFFFF
        row_at, head_at = layout.SLOT_TABLE_AT, layout.SLOT_HEADS_AT
        for member, ordinal, first, count in runs:
            length = count * each
            _pack_run(slot, head_at, _RUN_REST + length, wire.RUN, self._stream, number, n, m, first, count, size, checksum)
            _pack_row(slot, row_at, member, ordinal, count, head_at, start + first * step, length)
            row_at += layout.RUN_ROW_BYTES
            head_at += layout.RUN_HEAD_BYTES
        sparer = over[turn % len(over)][0]
        stripe.HEADER.pack_into(slot, layout.SLOT_RUNS_AT, len(runs), m, sparer)
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


class Inbound:
    """The decoder of the streams that are this worker's."""

    name = "inbound"

    def __init__(self, attachment: Attachment) -> None:
        self._ports = attachment.ports(self.name, "inbound")
        (self._out,) = attachment.ports(self.name, "decoded")
        self._bell = attachment.doorbells[self.name]
        self._lane = attachment.me.lane
        self._lanes = len(attachment.plan.of_kind("fec"))
        self._reassembly = Reassembly(Codec(), attachment.page.counters)
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
        due = self._reassembly.due()
        if due:
            seconds = max(0.0, min(seconds, (due - time.monotonic_ns()) / 1e9))
        self._bell.wait(self._out.ready if self._full else self._ready, seconds)

    def drained(self) -> bool:
        return True

    def _take(self, slot: memoryview, now: int) -> None:
        at, length, _, _ = _unpack_slot(slot)
        lane, lanes = self._lane, self._lanes
        end = at + length
        while end - at > 4:
            length, kind = _frame_at(slot, at)
            if kind == wire.RUN:
                short = length < _LANE_BYTE_AT  # has no lane: counted as malformed by the first worker
                if (0 if short else slot[at + _LANE_BYTE_AT] >> 1) % lanes == lane:
                    self._reassembly.take(slot, at, length, now)
            at += 4 + length

    def _hand_on(self, now: int) -> int:
        out = self._out
        free = out.ready()
        done = 0
        while done < free:
            found = self._reassembly.pop(now)
            if found is None:
                break
            slot = out.slot(done)
            end = START + len(found)
            slot[START:end] = found
            _pack_slot(slot, 0, START, len(found), 0, 0)
            done += 1
        if done:
            out.advance(done)
        return done


_unpack_slot = SLOT.unpack_from
_pack_slot = SLOT.pack_into
_frame_at = wire.FRAME.unpack_from
_pack_run = shard.RUN.pack_into
_pack_row = stripe.ROW.pack_into
_RUN_REST = shard.RUN_BYTES - wire.LENGTH.size
_LANE_BYTE_AT = 8  # the last byte of the stream's number: lane and purpose
_BLOCKS_CODED = ID["fec.blocks_coded"]
_BYTES_CODED = ID["fec.bytes_coded"]
_BYTES_ADDED = ID["fec.bytes_added"]
