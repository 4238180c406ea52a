"""The reassembly of one peer: runs of shards, from its connections and in any order, become blocks in block order.

    add_run(view, at, length, now)   put the shards of a run frame into the buffer of their block
    pop(now)                         the next block that may be delivered, or None
    due()                            when pop() will have a block because time has passed, with no further run

    a block is   while                                                            and is found in
    open         fewer than n of its shards are present                           _open, the oldest first
    waiting      it is complete, and a block before it in its stream is not       ReorderBuffer.waiting
    ready        it may be delivered; those of light streams come first           _ready
    done, lost   it was delivered or dropped; it was given up                     the bits of pipeline.fec.reorder

Any n distinct shards make a block complete. Missing data shards are recovered only when pop() reaches the block. Data
shards that arrive until then save that work: add all runs that have arrived before calling pop(). A block of one shard
is complete with its first copy. Only whole block frames are delivered, and a recovered one only if its checksum is
right.

An open block is given up when it is too old, or when its stream has gone too far ahead. When memory runs out, the
oldest block is given up first. While memory is short, no block waits. So a hostile peer loses some of its own blocks;
it costs us a bounded number of bytes, and a bounded time for each run.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush
from struct import Struct

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.fec.buffer_pool import BufferPool, rounded_up
from pipeline.fec.codec import Codec
from pipeline.fec.reorder import REORDER_WINDOW, WAIT_NS, WAIT_OF_PATHS_NS, ReorderBuffer
from pipeline.shm.layout import EXPIRED_BLOCKS, RECORD_WORDS, RECOVERED_BLOCKS
from pipeline.wire import framing

KEEP_NS = 2_000_000_000
"""How long a block stays open: TCP has repeated a lost segment by then, its first timeout (RFC 6298: 1 s) included."""

STRAYS_MOST, STRAY_NS = 8, 500_000_000
"""After so many runs of blocks far behind, and so long without any other, a stream begins anew with them. A connection
that stood still brings some such runs as well, but others come meanwhile."""

STREAMS_MAX = 32
"""Streams of a peer that are followed at a time: lanes times traffic classes, twice that from a server of several
peers. As many again may remain of the sender's last run."""

BYTES_LIMIT = 16 << 20
"""Bytes for the blocks of the only peer: 20 ms of 64 KiB blocks at 10 000 a second."""

BYTES_LIMIT_OF_MANY = 4 << 20
"""Bytes for the blocks of one of several peers: 100 Mbit/s for a third of a second."""

SINGLE_BYTES = 256
"""Bytes of the objects that stand for a block of one shard, beside its own bytes; rounded up."""

LARGEST_BYTES = rounded_up(
    max(
        (n + m) * shard.shard_bytes(shard.BLOCK_BYTES_MAX, n, m)
        for n in range(1, shard.DATA_SHARDS_MAX + 1)
        for m in range(shard.PARITY_SHARDS_MAX + 1)
    )
)
"""The largest buffer that a block can need."""

_Header = tuple[int, int, int, int, int]
_header_at = Struct(">5xQHBBQ").unpack_from  # shard.RUN as: stream and block, n and m, first, count, size and checksum
_pack_sealed_run = shard.SEALED_RUN.pack
_frame_at = framing.FRAME.unpack_from
_HEADER_BYTES = shard.RUN_BYTES
_REST_BYTES = shard.RUN_BYTES - framing.LENGTH.size  # of the header, behind the length field
_U32 = 0xFFFFFFFF

_RUNS = ID["fec.runs_received"]
_WHOLE = ID["fec.blocks_whole"]
_RECOVERED_1 = ID["fec.blocks_recovered_1"]
_EXPIRED = ID["fec.blocks_expired"]
_OVERTAKEN = ID["fec.blocks_overtaken"]
_UNNEEDED = ID["fec.shards_unneeded"]
_LATE = ID["fec.shards_late"]
_DUPLICATE = ID["fec.shards_duplicate"]
_RUN_MALFORMED = ID["fec.dropped_run_malformed"]
_BLOCK_CHECKSUM = ID["fec.dropped_block_checksum"]
_BLOCK_MALFORMED = ID["fec.dropped_block_malformed"]


class _Block:
    """A block of several shards. Its runs agree on `code` (n << 8 | m) and `content` (size << 32 | checksum)."""

    __slots__ = ("area", "code", "content", "key", "missing", "number", "opened_ns", "present", "shard_bytes", "stream")

    def __init__(
        self,
        key: int,
        stream: _Stream,
        number: int,
        code: int,
        content: int,
        shard_bytes: int,
        area: memoryview,
        opened_ns: int,
    ) -> None:
        self.key = key
        self.stream = stream
        self.number = number
        self.code = code
        self.content = content
        self.shard_bytes = shard_bytes
        self.area = area
        self.opened_ns = opened_ns  # when its first shard came
        self.present = 0  # bit i: shard i is present
        self.missing = code >> 8  # how many more shards it needs to be complete


_Stream = ReorderBuffer[bytes | _Block]


class Reassembly:
    """The blocks of one peer. Writes the inbound counters fec.* of `counters`.

    `records`: the recovered records of all peers; those of this one, `peer`, are written.
    `torn_until_ns`: until then (CLOCK_MONOTONIC) a predecessor may have had some shards of a block.
    """

    def __init__(
        self,
        codec: Codec,
        counters: memoryview,
        bytes_limit: int = BYTES_LIMIT,
        torn_until_ns: int = 0,
        records: memoryview | None = None,
        peer: int = 0,
        sealed: bool = False,
        has_paths: bool = False,
    ) -> None:
        self._bulk_wait_ns = WAIT_OF_PATHS_NS if has_paths else WAIT_NS[framing.BULK]
        self._codec = codec
        self._sealed = sealed
        self._single_bytes = SINGLE_BYTES + (_HEADER_BYTES if sealed else 0)
        self._counters = counters
        self._records = memoryview(bytearray(8 * RECORD_WORDS)).cast("Q") if records is None else records
        self._record_at = peer * RECORD_WORDS
        self._torn_until_ns = torn_until_ns
        self._buffers = BufferPool(max(bytes_limit, 2 * LARGEST_BYTES))
        self._short_above = self._buffers.limit * 3 // 4  # bytes in use above which memory is short
        self._streams: dict[int, _Stream] = {}
        self._open: OrderedDict[int, _Block] = OrderedDict()
        self._complete: dict[int, _Block] = {}  # waiting and ready blocks of several shards
        self._ready: tuple[deque[bytes | _Block], deque[bytes | _Block]] = (deque(), deque())  # by traffic class
        self.traffic_class = framing.BULK  # of the stream of the block that pop() gave last
        self.header = b""  # of that block, to be put in front of it; see pop()
        self._popped: memoryview | None = None  # the buffer of the block that pop() gave last
        self._next_timer_ns = 0  # when time alone may change something

    # -- a run comes

    def add_run(self, view: memoryview, at: int, length: int, now: int) -> None:
        """Add the run frame in view[at : at + 4 + length]. `now`: CLOCK_MONOTONIC ns."""
        counters = self._counters
        counters[_RUNS] += 1
        if length < _REST_BYTES:
            counters[_RUN_MALFORMED] += 1
            return
        key, code, first, count, content = header = _header_at(view, at)
        block = self._open.get(key)
        if block is None:
            block = self._open_block(view, at, length, header, now)
            if block is None:
                return
        elif (
            code != block.code
            or content != block.content
            or length != _REST_BYTES + count * block.shard_bytes
            or not count
            or first + count > (code >> 8) + (code & 0xFF)
        ):
            counters[_RUN_MALFORMED] += 1
            return
        shard_bytes = block.shard_bytes
        shards = (1 << count) - 1 << first
        present = block.present
        if present & shards:
            again = (present & shards).bit_count()
            counters[_DUPLICATE] += again
            block.missing += again
        block.present = present | shards
        block.missing = missing = block.missing - count
        start = first * shard_bytes
        block.area[start : start + count * shard_bytes] = view[at + _HEADER_BYTES : at + 4 + length]
        if missing <= 0:
            del self._open[key]
            self._complete[key] = block
            self._on_complete(block.stream, block.number, block, now)

    def _open_block(self, view: memoryview, at: int, length: int, header: _Header, now: int) -> _Block | None:
        """Handle a run of a block that is not open. The block, if it has several shards and they are wanted."""
        key, code, first, count, content = header
        n = code >> 8
        total = n + (code & 0xFF)
        shard_bytes = shard.shard_bytes(content >> 32, n, code & 0xFF)
        if not shard_bytes or length != _REST_BYTES + count * shard_bytes or not count or first + count > total:
            self._counters[_RUN_MALFORMED] += 1
            return None
        complete = self._complete.get(key)
        if complete is not None:
            self._add_to_complete(complete, view, at, header)
            return None
        stream = self._streams.get(key >> 32) or self._add_stream(key)
        stream.last_received_ns = now
        ahead = key - stream.next & _U32
        number = self._number_of(stream, ahead, n, count) if ahead else stream.next
        if number is None:
            if ahead <= _U32 >> 1 or _U32 - ahead < REORDER_WINDOW or not self._has_lost_its_way(stream, now):
                return None
            self._drop_stream(stream)
            return self._open_block(view, at, length, header, now)
        stream.strays = 0
        stream.last_wanted_ns = now
        if n > 1:
            need = total * shard_bytes
            area = self._buffers.acquire(need)
            if area is not None:
                self._prune(stream)
                heappush(stream.opened, number)
                block = self._open[key] = _Block(key, stream, number, code, content, shard_bytes, area, now)
                return block
            need = rounded_up(need)
        else:
            need = shard_bytes + self._single_bytes
            if self._buffers.reserve(need):
                if count > 1:
                    self._counters[_DUPLICATE] += count - 1
                start = at + _HEADER_BYTES
                head = self._whole_header(key, content, first) if self._sealed else b""
                self._on_complete(stream, number, head + bytes(view[start : start + shard_bytes]), now)
                return None
        if self._make_room(need):
            return self._open_block(view, at, length, header, now)  # from the start: the stream may have moved
        self._counters[_LATE] += count
        return None

    @staticmethod
    def _has_lost_its_way(stream: _Stream, now: int) -> bool:
        """A run has come of a block that is far behind. Whether nothing else has come for a while.

        Then a number far ahead was wrong, of a worker of the other end that ran amok: the stream begins anew.
        """
        stream.strays += 1
        return stream.strays >= STRAYS_MOST and now - stream.last_wanted_ns >= STRAY_NS

    def _number_of(self, stream: _Stream, ahead: int, n: int, count: int) -> int | None:
        """The number of the block in its stream; None if the block is not wanted any more, which is counted."""
        if ahead <= REORDER_WINDOW:
            number = stream.next + ahead
            if number not in stream.waiting:
                return number
        elif ahead <= _U32 >> 1:
            number = stream.next + ahead
            self._expire(stream, stream.skip_to(number - 1, self._ready_of(stream)))
            return number
        else:
            behind = _U32 - ahead
            if behind >= REORDER_WINDOW or stream.lost >> behind & 1:
                self._counters[_LATE] += count
                return None
            if stream.undone >> behind & 1:
                return stream.next - 1 - behind
        self._counters[_UNNEEDED if n > 1 else _DUPLICATE] += count
        return None

    def _add_to_complete(self, block: _Block, view: memoryview, at: int, header: _Header) -> None:
        """Add a run to a complete block that is not delivered yet: its data shards need not be recovered."""
        _, code, first, count, content = header
        if code != block.code or content != block.content:
            self._counters[_RUN_MALFORMED] += 1
            return
        self._counters[_UNNEEDED] += count
        shards = (1 << count) - 1 << first
        if shards & ~block.present & (1 << (code >> 8)) - 1:
            block.present |= shards
            start, size, at = first * block.shard_bytes, count * block.shard_bytes, at + _HEADER_BYTES
            block.area[start : start + size] = view[at : at + size]

    # -- a block is complete

    def _on_complete(self, stream: _Stream, number: int, block: bytes | _Block, now: int) -> None:
        """A block has become complete: it is ready, or it waits for its turn."""
        ready = self._ready_of(stream)
        if number == stream.next:
            ready.append(block)
            left = stream.advance(ready)
            if left:
                self._expire(stream, left)
        elif number < stream.next:
            stream.mark_done(number)
            ready.append(block)
            self._counters[_OVERTAKEN] += 1
        else:
            until = stream.add_waiting(number, block, now)
            if self._buffers.used > self._short_above:
                self._expire(stream, stream.skip_to(number, ready))
            elif until < self._next_timer_ns:
                self._next_timer_ns = until

    def _ready_of(self, stream: _Stream) -> deque[bytes | _Block]:
        return self._ready[stream.number & 1]

    # -- a block is delivered

    def pop(self, now: int) -> memoryview | None:
        """The next block that may be delivered, in a view that is valid until the next call.

        With sealed blocks it is the frame of a run that is whole: `header` and the view, one behind the other.
        """
        if now >= self._next_timer_ns:
            self._run_timers(now)
        buffers, counters = self._buffers, self._counters
        bulk, light = self._ready
        while True:
            if self._popped is not None:
                buffers.release(self._popped)
                self._popped = None
            if light:
                block, self.traffic_class = light.popleft(), framing.LIGHT
            elif bulk:
                block, self.traffic_class = bulk.popleft(), framing.BULK
            else:
                return None
            if isinstance(block, bytes):
                buffers.unreserve(len(block) + SINGLE_BYTES)
                counters[_WHOLE] += 1
                found = memoryview(block)
                self.header = b""
            else:
                del self._complete[block.key]
                self._popped = block.area
                if not self._recover(block):
                    counters[_BLOCK_CHECKSUM] += 1
                    continue
                found = block.area[: block.content >> 32]
                if self._sealed:
                    self.header = self._whole_header(block.key, block.content, 0)
            if self._sealed:
                return found
            size = len(found)
            if size >= framing.FRAME.size and _frame_at(found) == (size - 4, framing.BLOCK):
                return found
            counters[_BLOCK_MALFORMED] += 1

    @staticmethod
    def _whole_header(key: int, content: int, copy: int) -> bytes:
        """The header that the run of a block has which travels whole, but for the count of packets."""
        size = content >> 32
        return _pack_sealed_run(
            _REST_BYTES + size, framing.RUN, key >> 32, key & _U32, 1, 0, copy, 1, size, content >> 16 & 0xFFFF, 0
        )

    def _recover(self, block: _Block) -> bool:
        """Recover the missing data shards. False if the checksum was made of other data."""
        n, m = block.code >> 8, block.code & 0xFF
        missing = (1 << n) - 1 & ~block.present
        if not missing:
            self._counters[_WHOLE] += 1
            return True
        shards = block.area[: (n + m) * block.shard_bytes]
        self._codec.recover(shards, n, m, block.shard_bytes, block.present)
        if not self._sealed and self._codec.checksum(shards, n, m, block.shard_bytes) != block.content & _U32:
            return False
        self._counters[_RECOVERED_1 - 1 + missing.bit_count()] += 1
        self._records[self._record_at + RECOVERED_BLOCKS] += 1
        return True

    # -- time passes

    def due(self) -> int:
        """When (CLOCK_MONOTONIC ns) pop() will have a block even if no run comes before; 0 if no block waits."""
        return min([stream.due() for stream in self._streams.values() if stream.waiting], default=0)

    def is_idle(self, now: int) -> bool:
        """Whether no block is left, and the last run came long ago: then a new Reassembly can replace it."""
        return (
            not (self._open or self._complete or any(self._ready) or any(s.waiting for s in self._streams.values()))
            and now - self._last_received_ns() >= KEEP_NS
        )

    def _last_received_ns(self) -> int:
        return max([stream.last_received_ns for stream in self._streams.values()], default=0)

    def _run_timers(self, now: int) -> None:
        """Do what is due because time has passed."""
        for stream in self._streams.values():
            last = stream.expired_up_to(now)
            if last >= stream.next:
                self._expire(stream, stream.skip_to(last, self._ready_of(stream)))
        oldest = next(iter(self._open.values()), None)
        while oldest is not None and oldest.opened_ns + KEEP_NS <= now:
            self._give_up(oldest)
            oldest = next(iter(self._open.values()), None)
        if oldest is None and now - self._last_received_ns() >= KEEP_NS:
            self._buffers.trim()
            self._open.clear()  # it is empty, but its table has grown
            for stream in self._streams.values():
                stream.opened.clear()
        self._next_timer_ns = (now if oldest is None else oldest.opened_ns) + KEEP_NS
        due = self.due()
        if due:
            self._next_timer_ns = min(due, self._next_timer_ns)

    # -- blocks are given up

    def _make_room(self, size: int) -> bool:
        """Give up the oldest open blocks until so many bytes are free. False if that frees too few."""
        buffers = self._buffers
        while buffers.used + size > buffers.limit and self._open:
            self._give_up(next(iter(self._open.values())))
        return buffers.used + size <= buffers.limit

    def _give_up(self, block: _Block) -> None:
        del self._open[block.key]
        self._buffers.release(block.area)
        self._count_expired(1)
        self._expire(block.stream, block.stream.give_up(block.number, self._ready_of(block.stream)))

    def _expire(self, stream: _Stream, left: int) -> None:
        """So many blocks left the window undone: count them, and close the open ones among them."""
        if left:
            self._count_expired(left)
            self._prune(stream)

    def _count_expired(self, count: int) -> None:
        self._counters[_EXPIRED] += count
        self._records[self._record_at + EXPIRED_BLOCKS] += count

    def _prune(self, stream: _Stream) -> None:
        opened = stream.opened
        floor = stream.next - REORDER_WINDOW if stream.undone else stream.next
        while opened and opened[0] < floor:
            number = heappop(opened)
            block = self._open.pop(stream.number << 32 | number & _U32, None)
            if block is not None:
                self._buffers.release(block.area)
                if number < stream.first:
                    self._count_expired(1)

    # -- streams

    def _add_stream(self, key: int) -> _Stream:
        """Follow a stream that is new, or that was dropped. It may take the place of another one."""
        streams = self._streams
        if len(streams) >= STREAMS_MAX:
            self._drop_stream(min(streams.values(), key=lambda stream: stream.last_received_ns))
        number = key >> 32
        wait_ns = WAIT_NS[framing.LIGHT] if number & 1 else self._bulk_wait_ns
        stream = streams[number] = ReorderBuffer(number, key & _U32, self._torn_until_ns, wait_ns)
        return stream

    def _drop_stream(self, stream: _Stream) -> None:
        del self._streams[stream.number]
        for number in stream.opened:
            opened = self._open.pop(stream.number << 32 | number & _U32, None)
            if opened is not None:
                self._buffers.release(opened.area)
                self._count_expired(1)
        for block in stream.waiting.values():
            if isinstance(block, bytes):
                self._buffers.unreserve(len(block) + SINGLE_BYTES)
            else:
                del self._complete[block.key]
                self._buffers.release(block.area)
            self._count_expired(1)
