"""The assembly of one peer: segments, in any order, become sealed blocks.

    add_in_order(words, rows, ...)   the first of several segments, as far as they are of one block and in its order
    add_rows(fields, rows, now)      segments that came together, as columns (segment.ROWS) and rows
    add_row(fields, row, now)        one segment
    pop(now)                         the next block that may be delivered, or None
    write(block, slot, at)           put it into a slot, as a run that is whole
    progress(since, quiet_since)     which blocks have come, and which rows are missing, for a report
    due()                            when pop() will have a block because time has passed, with no further segment

    a block is   while                                                             and is found in
    open         some part has fewer than n of its rows                            _open, the oldest first
    waiting      it is complete, and a block before it in its stream is not        ReorderBuffer.waiting
    ready        it may be delivered; light ones come first                        _ready
    done, lost   it was delivered or dropped; it was given up                      the bits of pipeline.fec.reorder

After KEEP_NS without a segment a stream begins anew: its blocks have gone by TCP meanwhile. Blocks of light streams
wait for none. A block of one row is complete with its first copy. Lost rows are recovered when a block is delivered, as
rows that arrive until then save that work.

The tag of a block is checked by who opens it, and only then is it known to be of the peer. So a forged segment costs
its block. An open block is given up when it is too old, or its stream has gone too far ahead, or when memory runs out.
So a hostile peer loses some of its own blocks; it costs a bounded number of bytes, and a bounded time for each
segment.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush
from typing import Any

import numpy as np

from pipeline.counters import ID
from pipeline.datagram.arriving_block import Block, Single
from pipeline.datagram.cut import is_cut, parts_of
from pipeline.datagram.segment import OF_BLOCK, WORDS
from pipeline.fec import shard
from pipeline.fec.buffer_pool import BufferPool, rounded_up
from pipeline.fec.codec import Codec
from pipeline.fec.reorder import REORDER_WINDOW, ReorderBuffer
from pipeline.wire import framing
from pipeline.wire.control_datagram import BITS_MOST, INCOMPLETE_MOST, STREAMS_MOST, Arrivals, Incomplete

KEEP_NS = 1_000_000_000
"""How long a block stays open: its lost rows have been sent again by then, or they never will be."""

STREAMS_MAX = 32
"""As in pipeline.fec.reassembly."""

SINGLE_BYTES = 256
"""Bytes of the objects that stand for a block of one row, beside its own bytes; rounded up."""

LARGEST_BYTES = rounded_up(8 * shard.BLOCK_BYTES_MAX)
"""The largest buffer that a block can need: of parts with two data rows and six of parity, and their padding."""

_pack_run = shard.SEALED_RUN.pack_into
_REST_BYTES = shard.RUN_BYTES - framing.LENGTH.size
_U32 = 0xFFFFFFFF

_WHOLE = ID["dgram.blocks_whole"]
_RECOVERED = ID["dgram.blocks_recovered"]
_EXPIRED = ID["dgram.blocks_expired"]
_OVERTAKEN = ID["dgram.blocks_overtaken"]
_LATE = ID["dgram.segments_late"]
_UNNEEDED = ID["dgram.segments_unneeded"]
_MALFORMED = ID["dgram.dropped_segment_malformed"]


_Stream = ReorderBuffer[Block | Single]


class Assembly:
    """The blocks of one peer. `wait_ns`: how long a complete block waits for those before it in its stream.

    `refused`: segments that have come, and for which there was no room. `recovered`, `expired`: blocks.
    """

    def __init__(self, codec: Codec, counters: memoryview, bytes_limit: int, wait_ns: int) -> None:
        self._codec = codec
        self._counters = counters
        self._wait_ns = wait_ns
        self._buffers = BufferPool(max(bytes_limit, 2 * LARGEST_BYTES))
        self._short_above = self._buffers.limit * 3 // 4
        self._streams: dict[int, _Stream] = {}
        self._open: OrderedDict[int, Block] = OrderedDict()
        self._complete: dict[int, Block] = {}
        self._bulk: deque[Block | Single] = deque()
        self._light: deque[Block | Single] = deque()
        self._next_timer_ns = 0
        self._told = 0  # codewords that lack rows, from the oldest one on, in the last report that had no room for all
        self.refused = self.recovered = self.expired = 0

    # -- segments come

    def add_rows(self, fields: np.ndarray, rows: np.ndarray, now: int) -> None:
        """Add segments that came together. `fields`: of each, in memory of their own; `rows`: of each, all of one
        size."""
        words = fields.view(np.uint64).reshape(len(fields), WORDS)
        if len(fields) > 1 and not np.count_nonzero((words ^ words[0]) & OF_BLOCK):
            self._add_group(fields, rows, now)
            return
        blocks = fields["block"]
        ends = [*(np.flatnonzero(blocks[1:] != blocks[:-1]) + 1).tolist(), len(blocks)]
        first = 0
        for end in ends:
            of_block = words[first:end]
            if end - first == 1 or ((of_block ^ of_block[0]) & OF_BLOCK).any():
                for each, row in zip(fields[first:end].tolist(), rows[first:end], strict=True):
                    self.add_row(each, row.data, now)
            else:
                self._add_group(fields[first:end], rows[first:end], now)
            first = end

    def _add_group(self, fields: np.ndarray, rows: np.ndarray, now: int) -> None:
        """Add rows of one block, which have all in common but part and index."""
        _, _, key, epoch, size, _, code, _ = fields[0].item()
        count, row_bytes = rows.shape
        if code >> 8 <= 1:
            for each, row in zip(fields.tolist(), rows, strict=True):
                self.add_row(each, row.data, now)
            return
        block = self._open.get(key) or self._open_block(key, epoch, size, code, row_bytes, count, now)
        if block is None:
            return
        index, part, places = fields["index"], fields["part"], block.places
        rows_end, parts_end = (int(np.maximum.reduce(each)) + 1 for each in (index, part))
        is_inside = rows_end <= places.n + places.m and parts_end <= places.parts
        if not is_inside or not self._agrees(block, epoch, size, code, row_bytes):
            self._counters[_MALFORMED] += count
            return
        at = index.astype(np.intp) * places.parts + part
        block.rows[at] = rows
        came = np.zeros(places.total, np.bool_)
        came[at] = True
        bits = int.from_bytes(np.packbits(came, bitorder="little").tobytes(), "little")
        if bits.bit_count() < count:
            self._counters[_UNNEEDED] += count - bits.bit_count()
        self._mark(block, bits, now)

    def add_in_order(
        self, first: tuple[Any, ...], words: np.ndarray, rows: np.ndarray, scratch: np.ndarray, now: int
    ) -> int:
        """Add the first of several segments: so many as follow each other in one block. How many; 0 if the first one
        has to be added in another way.

        `first`: its fields, as add_row() takes them. `words`: those of all, as words. `scratch`: of their shape.
        """
        _, _, key, epoch, size, part, code, index = first
        n, row_bytes = code >> 8, rows.shape[1]
        if n <= 1:
            return 0
        block = self._open.get(key) or self._open_block(key, epoch, size, code, row_bytes, 0, now)
        if block is None or not self._agrees(block, epoch, size, code, row_bytes):
            return 0
        places = block.places
        at: int = index * places.parts + part
        if part >= places.parts or at >= places.total:
            return 0
        end = min(at + len(words), places.total)
        count = end - at
        in_common = scratch[:count]
        np.bitwise_xor(words[:count], places.words[at:end], out=in_common)
        in_common[:, 0] = 0
        if in_common.tobytes() != in_common[0].tobytes() * count:
            return 0
        block.rows[at:end] = rows[:count]
        self._mark(block, (1 << end) - (1 << at), now)
        return count

    def add_row(self, fields: tuple[Any, ...], row: memoryview, now: int) -> None:
        """Add one segment: sequence, sender, block, epoch, size, part, code, index; and its row."""
        _, _, key, epoch, size, part, code, index = fields
        if code >> 8 == 1:
            self._add_single(key, epoch, size, part, code & 0xFF, index, row, now)
            return
        block = self._open.get(key) or self._open_block(key, epoch, size, code, len(row), 1, now)
        if block is None:
            return
        places = block.places
        if not self._agrees(block, epoch, size, code, len(row)) or part >= places.parts or index >= places.n + places.m:
            self._counters[_MALFORMED] += 1
            return
        at = index * places.parts + part
        block.area[at * block.row_bytes : (at + 1) * block.row_bytes] = row
        self._mark(block, 1 << at, now)

    def _mark(self, block: Block, rows: int, now: int) -> None:
        """These rows have come: bit i is place i."""
        before = block.present
        if before & rows:
            self._counters[_UNNEEDED] += (before & rows).bit_count()
        block.present = present = before | rows
        block.received_ns = block.stream.last_received_ns = now
        if block.places.are_enough(present):
            self._on_complete(block, now)

    @staticmethod
    def _agrees(block: Block, epoch: int, size: int, code: int, row_bytes: int) -> bool:
        return block.code == code and block.size == size and block.epoch == epoch and block.row_bytes == row_bytes

    def _add_single(
        self, key: int, epoch: int, size: int, part: int, copies: int, copy: int, row: memoryview, now: int
    ) -> None:
        if size != len(row) or part or copy > copies or not is_cut(size, 1, copies, size):
            self._counters[_MALFORMED] += 1
            return
        if key >> 32 & 1:  # the windows of who opens it know what has come
            if self._buffers.reserve(size + SINGLE_BYTES):
                self._light.append(Single(key, epoch, copies, copy, bytes(row)))
            else:
                self._refuse(1)
            return
        stream, number = self._place(key, 1, now)
        if stream is None:
            return
        if not self._buffers.reserve(size + SINGLE_BYTES):
            if self._make_room(size + SINGLE_BYTES):
                self._add_single(key, epoch, size, part, copies, copy, row, now)
            else:
                self._refuse(1)
            return
        self._pass_on(stream, number, Single(key, epoch, copies, copy, bytes(row)), now)

    def _open_block(
        self, key: int, epoch: int, size: int, code: int, row_bytes: int, count: int, now: int
    ) -> Block | None:
        """The block of segments that belong to none that is open, if they are wanted."""
        n, m = code >> 8, code & 0xFF
        if not is_cut(size, n, m, row_bytes):
            self._counters[_MALFORMED] += count
            return None
        complete = self._complete.get(key)
        if complete is not None:
            self._counters[_UNNEEDED] += count
            return None
        stream, number = self._place(key, count, now)
        if stream is None:
            return None
        need = parts_of(size, n, row_bytes) * (n + m) * row_bytes
        area = self._buffers.acquire(need)
        if area is None:
            if self._make_room(rounded_up(need)):
                return self._open_block(key, epoch, size, code, row_bytes, count, now)
            self._refuse(count)
            return None
        self._prune(stream)
        heappush(stream.opened, number)
        block = self._open[key] = Block(key, stream, number, size, epoch, code, row_bytes, area, now)
        return block

    def _place(self, key: int, count: int, now: int) -> tuple[_Stream | None, int]:
        """The stream and number of a block; None and 0 if it is not wanted any more, which is counted."""
        stream = self._streams.get(key >> 32) or self._add_stream(key)
        ahead = key - stream.next & _U32
        if 0 < ahead <= _U32 >> 1 and now - stream.last_received_ns >= KEEP_NS and stream.last_received_ns:
            self._drop_stream(stream)
            stream, ahead = self._add_stream(key), 0
        stream.last_received_ns = now
        if ahead <= REORDER_WINDOW:
            number = stream.next + ahead
            if number not in stream.waiting:
                return stream, number
        elif ahead <= _U32 >> 1:
            number = stream.next + ahead
            self._expire(stream, stream.skip_to(number - 1, self._bulk))
            return stream, number
        else:
            behind = _U32 - ahead
            if behind >= REORDER_WINDOW or stream.lost >> behind & 1:
                self._counters[_LATE] += count
                return None, 0
            if stream.undone >> behind & 1:
                return stream, stream.next - 1 - behind
        self._counters[_UNNEEDED] += count
        return None, 0

    # -- a block is complete

    def _on_complete(self, block: Block, now: int) -> None:
        del self._open[block.key]
        self._complete[block.key] = block
        self._pass_on(block.stream, block.number, block, now)

    def _pass_on(self, stream: _Stream, number: int, block: Block | Single, now: int) -> None:
        """A block has become complete: it is ready, or it waits for its turn."""
        ready = self._light if stream.number & 1 else self._bulk
        if number == stream.next:
            ready.append(block)
            self._expire(stream, stream.advance(ready))
        elif number < stream.next:
            stream.mark_done(number)
            ready.append(block)
            self._counters[_OVERTAKEN] += 1
        elif self._buffers.used > self._short_above or stream.number & 1:
            self._expire(stream, stream.skip_to(number - 1, ready))
            ready.append(block)
            self._expire(stream, stream.advance(ready))
        else:
            until = stream.add_waiting(number, block, now)
            self._next_timer_ns = min(self._next_timer_ns, until)

    # -- a block is delivered

    def pop(self, now: int) -> Block | Single | None:
        """The next block that may be delivered. Its memory is free again after write() or drop()."""
        if now >= self._next_timer_ns:
            self._run_timers(now)
        if self._light:
            return self._light.popleft()
        return self._bulk.popleft() if self._bulk else None

    def write(self, block: Block | Single, slot: memoryview, at: int) -> int:
        """Put the block into slot[at:], as the frame of a run that is whole. Where it ends."""
        key = block.key
        if isinstance(block, Single):
            size = len(block.content)
            copies, copy = block.copies, block.copy
            start = at + shard.RUN_BYTES
            slot[start : start + size] = block.content
            self._buffers.unreserve(size + SINGLE_BYTES)
            self._counters[_WHOLE] += 1
        else:
            size, copies, copy = block.size, 0, 0
            is_recovered = block.write(slot, at + shard.RUN_BYTES, self._codec)
            self._counters[_RECOVERED if is_recovered else _WHOLE] += 1
            self.recovered += is_recovered
            self._forget(block)
        _pack_run(
            slot, at, _REST_BYTES + size, framing.RUN,
            key >> 32, key & _U32, 1, copies, copy, 1, size, block.epoch, 0,
        )  # fmt: skip
        return at + shard.RUN_BYTES + size

    def _forget(self, block: Block) -> None:
        del self._complete[block.key]
        self._buffers.release(block.area)

    # -- what the other end is told

    def progress(self, since: int, quiet_since: int) -> tuple[list[Arrivals], list[Incomplete]]:
        """The streams of which segments have come since then, the latest first, and codewords of them that lack rows.

        The newest block of a stream is left out if it has got a row after `quiet_since`: its other rows are under way.
        Rows of the rest may be under way, too. If there are too many of them, those behind the ones of last time are
        told, one behind the other.
        """
        streams = sorted(
            (stream for stream in self._streams.values() if stream.last_received_ns >= since),
            key=lambda stream: -stream.last_received_ns,
        )[:STREAMS_MOST]
        lacking: list[Incomplete] = []
        if self._open:
            positions = {stream.number: position for position, stream in enumerate(streams)}
            newest = {block.stream.number: block for block in self._open.values()}
            for block in self._open.values():
                position = positions.get(block.stream.number)
                is_newest = block is newest[block.stream.number] and not block.stream.waiting
                if position is None or (is_newest and block.received_ns > quiet_since):
                    continue
                lacking += self._lacking(block, position)
        return [self._arrivals(stream) for stream in streams], self._some_of(lacking)

    def _some_of(self, lacking: list[Incomplete]) -> list[Incomplete]:
        if len(lacking) <= INCOMPLETE_MOST:
            self._told = 0
            return lacking
        begin = min(self._told, len(lacking) - INCOMPLETE_MOST)
        self._told = 0 if begin + INCOMPLETE_MOST == len(lacking) else begin + INCOMPLETE_MOST
        return lacking[begin : begin + INCOMPLETE_MOST]

    @staticmethod
    def _arrivals(stream: _Stream) -> Arrivals:
        ahead = [number - stream.next - 1 for number in stream.waiting]
        bits = sum(1 << each for each in ahead if each < 8 * BITS_MOST)
        return Arrivals(stream.number, stream.next & _U32, bits.to_bytes(-(-bits.bit_length() // 8), "little"))

    @staticmethod
    def _lacking(block: Block, position: int) -> list[Incomplete]:
        return [
            Incomplete(position, block.number & _U32, part, lacking)
            for part in range(block.places.parts)
            if (lacking := block.lacking(part))
        ]

    # -- time passes

    def due(self) -> int:
        """When (CLOCK_MONOTONIC ns) pop() will have a block even if no segment comes before; 0 if no block waits."""
        return min([stream.due() for stream in self._streams.values() if stream.waiting], default=0)

    def is_idle(self, now: int) -> bool:
        """Whether no block is left, and the last segment came long ago."""
        return (
            not (self._open or self._complete or self._bulk or self._light)
            and now - max([each.last_received_ns for each in self._streams.values()], default=0) >= KEEP_NS
        )

    def _run_timers(self, now: int) -> None:
        for stream in self._streams.values():
            last = stream.expired_up_to(now)
            if last >= stream.next:
                self._expire(stream, stream.skip_to(last, self._bulk))
        oldest = next(iter(self._open.values()), None)
        while oldest is not None and oldest.opened_ns + KEEP_NS <= now:
            self._give_up(oldest)
            oldest = next(iter(self._open.values()), None)
        self._next_timer_ns = (now if oldest is None else oldest.opened_ns) + KEEP_NS
        due = self.due()
        if due:
            self._next_timer_ns = min(due, self._next_timer_ns)

    # -- blocks are given up

    def _refuse(self, count: int) -> None:
        self.refused += count
        self._counters[_LATE] += count

    def _make_room(self, size: int) -> bool:
        """Give up the oldest open blocks until so many bytes are free. False if that frees too few."""
        buffers = self._buffers
        while buffers.used + size > buffers.limit and self._open:
            self._give_up(next(iter(self._open.values())))
        return buffers.used + size <= buffers.limit

    def _give_up(self, block: Block) -> None:
        del self._open[block.key]
        self._buffers.release(block.area)
        self._count_expired(1)
        ready = self._light if block.stream.number & 1 else self._bulk
        self._expire(block.stream, block.stream.give_up(block.number, ready))

    def _expire(self, stream: _Stream, left: int) -> None:
        """So many blocks left the window undone: count them, and close the open ones among them."""
        if left:
            self._count_expired(left)
            self._prune(stream)

    def _count_expired(self, count: int) -> None:
        self.expired += count
        self._counters[_EXPIRED] += count

    def _prune(self, stream: _Stream) -> None:
        opened = stream.opened
        floor = stream.next - REORDER_WINDOW if stream.undone else stream.next
        while opened and opened[0] < floor:
            number = heappop(opened)
            block = self._open.pop(stream.number << 32 | number & _U32, None)
            if block is not None:
                self._buffers.release(block.area)

    # -- streams

    def _add_stream(self, key: int) -> _Stream:
        """Follow a stream that is new, or that was dropped. It may take the place of another one."""
        if len(self._streams) >= STREAMS_MAX:
            self._drop_stream(min(self._streams.values(), key=lambda stream: stream.last_received_ns))
        stream = self._streams[key >> 32] = ReorderBuffer(key >> 32, key & _U32, 0, self._wait_ns)
        return stream

    def _drop_stream(self, stream: _Stream) -> None:
        del self._streams[stream.number]
        for number in stream.opened:
            opened = self._open.pop(stream.number << 32 | number & _U32, None)
            if opened is not None:
                self._buffers.release(opened.area)
                self._count_expired(1)
        for block in stream.waiting.values():
            if isinstance(block, Single):
                self._buffers.unreserve(len(block.content) + SINGLE_BYTES)
            else:
                self._forget(block)
            self._count_expired(1)
