"""A peer's runs of shards, from any number of connections in any order, into blocks in block order.

    take(view, at, length, now)   a run frame: its shards go into their block's buffer
    pop(now)                      the next block that may go on, or None
    due()                         when pop() will have one only because time has passed

    a block is   while                                                   and is found in
    open         fewer than n of its shards are there                    _open, the oldest first
    waiting      it is complete, and one before it in its stream is not  Order.waiting
    ready        it may go on; of light streams first                    _ready
    done, lost   it was handed on or dropped; it was given up            the bits of pipeline.fec.reorder

Any n distinct shards make a block complete. What is missing is recovered only when pop() comes to it: data shards that
arrive until then spare the work, so take everything that is there before popping. A block of one shard is complete
with its first copy. Nothing goes on that is not a whole block frame, and nothing that was recovered unless its checksum
is right.

An open block is given up when it is too old, when its stream has gone too far ahead, or when memory runs out, the
oldest first; while memory is short no block waits. So whatever a peer sends costs it some of its own blocks, and us no
more than a bounded number of bytes and a bounded time for each run.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import MutableSequence
from heapq import heappop, heappush
from struct import Struct

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.fec.buffer_pool import BufferPool, rounded
from pipeline.fec.codec import Codec
from pipeline.fec.reorder import WINDOW, ReorderBuffer
from pipeline.wire import framing

KEEP_NS = 2_000_000_000
"""How long a block stays open: TCP has repeated a lost segment by then, its first timeout (RFC 6298: 1 s) included."""

STREAMS_MAX = 32
"""Streams of a peer that are followed at a time: lanes times purposes, twice from a server of several peers, and as
many of the sender's last run."""

BYTES_LIMIT = 16 << 20
"""Bytes for the blocks of a peer: 20 ms of 64 KiB blocks at 10 000 a second."""

BYTES_LIMIT_OF_MANY = 4 << 20
"""The same where there are several peers: 100 Mbit/s for a third of a second."""

SINGLE_BYTES = 256
"""What the objects that stand for a block of one shard take beside its bytes, rounded up."""


class _Block:
    """A block of several shards. Its runs agree on `code` (n << 8 | m) and `content` (size << 32 | checksum)."""

    __slots__ = ("area", "began", "code", "content", "each", "have", "key", "left", "number", "order", "total")

    def __init__(
        self,
        key: int,
        order: ReorderBuffer[bytes | _Block],
        number: int,
        code: int,
        content: int,
        each: int,
        area: memoryview,
        began: int,
    ) -> None:
        self.key = key
        self.order = order
        self.number = number
        self.code = code
        self.content = content
        self.each = each  # bytes of a shard
        self.total = (code >> 8) + (code & 0xFF)
        self.area = area
        self.began = began  # when its first shard came
        self.have = 0  # bit i: shard i is there
        self.left = code >> 8  # shards that it takes to be complete


class Reassembly:
    """The blocks of one peer. Writes the inbound rows fec.* of `counters`."""

    def __init__(self, codec: Codec, counters: MutableSequence[int], bytes_limit: int = BYTES_LIMIT) -> None:
        self._codec = codec
        self._counters = counters
        self._buffers = BufferPool(max(bytes_limit, 2 * LARGEST_BYTES))
        self._plenty = self._buffers.limit * 3 // 4  # bytes in use above which memory is short
        self._orders: dict[int, ReorderBuffer[bytes | _Block]] = {}
        self._open: OrderedDict[int, _Block] = OrderedDict()
        self._complete: dict[int, _Block] = {}  # the waiting and the ready ones of several shards
        self._ready: tuple[deque[bytes | _Block], ...] = (deque(), deque())  # by purpose
        self.traffic_class = framing.BULK  # of the stream of what pop() gave
        self._lent: memoryview | None = None  # the buffer behind what pop() gave
        self._look_at = 0  # when time alone may change something

    def take(self, view: memoryview, at: int, length: int, now: int) -> None:
        """The run frame in view[at : at + 4 + length]. `now`: CLOCK_MONOTONIC ns."""
        counters = self._counters
        counters[_RUNS] += 1
        if length < _REST:
            counters[_RUN_MALFORMED] += 1
            return
        key, code, first, count, content = header = _header_at(view, at)
        block = self._open.get(key)
        if block is None:
            block = self._other(view, at, length, header, now)
            if block is None:
                return
        elif (
            code != block.code
            or content != block.content
            or length != _REST + count * block.each
            or not count
            or first + count > block.total
        ):
            counters[_RUN_MALFORMED] += 1
            return
        each = block.each
        shards = (1 << count) - 1 << first
        have = block.have
        if have & shards:
            again = (have & shards).bit_count()
            counters[_DUPLICATE] += again
            block.left += again
        block.have = have | shards
        block.left = left = block.left - count
        start = first * each
        block.area[start : start + count * each] = view[at + _HEADER_BYTES : at + 4 + length]
        if left <= 0:
            del self._open[key]
            self._complete[key] = block
            self._settle(block.order, block.number, block, now)

    def pop(self, now: int) -> memoryview | None:
        """The next block that may go on, in a view that is good until the next call."""
        if now >= self._look_at:
            self._look(now)
        buffers, counters = self._buffers, self._counters
        bulk, light = self._ready
        while True:
            if self._lent is not None:
                buffers.take_back(self._lent)
                self._lent = None
            if light:
                block, self.traffic_class = light.popleft(), framing.LIGHT
            elif bulk:
                block, self.traffic_class = bulk.popleft(), framing.BULK
            else:
                return None
            if type(block) is bytes:
                buffers.release(len(block) + SINGLE_BYTES)
                counters[_WHOLE] += 1
                found = memoryview(block)
            else:
                del self._complete[block.key]
                self._lent = block.area
                if not self._recover(block):
                    counters[_BLOCK_CHECKSUM] += 1
                    continue
                found = block.area[: block.content >> 32]
            size = len(found)
            if size >= framing.FRAME.size and _frame_at(found) == (size - 4, framing.BLOCK):
                return found
            counters[_BLOCK_MALFORMED] += 1

    def due(self) -> int:
        """When (CLOCK_MONOTONIC ns) pop() will have a block even if nothing is taken before; 0 if no block waits."""
        return min([order.due() for order in self._orders.values() if order.waiting], default=0)

    def idle(self, now: int) -> bool:
        """Whether nothing is left of what was heard, and that was long ago: then a new one does as well."""
        return (
            not (self._open or self._complete or any(self._ready) or any(o.waiting for o in self._orders.values()))
            and now - max([order.heard for order in self._orders.values()], default=0) >= KEEP_NS
        )

    def _ready_of(self, order: ReorderBuffer[bytes | _Block]) -> deque[bytes | _Block]:
        return self._ready[order.stream & 1]

    def _other(self, view: memoryview, at: int, length: int, header: _Header, now: int) -> _Block | None:
        """A run of a block that is not open. Opens it, if it has several shards and they are wanted."""
        key, code, first, count, content = header
        n = code >> 8
        total = n + (code & 0xFF)
        each = shard.shard_bytes(content >> 32, n, code & 0xFF)
        if not each or length != _REST + count * each or not count or first + count > total:
            self._counters[_RUN_MALFORMED] += 1
            return None
        complete = self._complete.get(key)
        if complete is not None:
            self._spare(complete, view, at, header)
            return None
        order = self._orders.get(key >> 32) or self._admit(key)
        order.heard = now
        ahead = key - order.next & _U32
        number = self._place(order, ahead, n, count) if ahead else order.next
        if number is None:
            return None
        if n > 1:
            need = total * each
            area = self._buffers.lend(need)
            if area is not None:
                self._prune(order)
                heappush(order.begun, number)
                block = self._open[key] = _Block(key, order, number, code, content, each, area, now)
                return block
            need = rounded(need)
        else:
            need = each + SINGLE_BYTES
            if self._buffers.hold(need):
                if count > 1:
                    self._counters[_DUPLICATE] += count - 1
                start = at + _HEADER_BYTES
                self._settle(order, number, bytes(view[start : start + each]), now)
                return None
        if self._make_room(need):
            return self._other(view, at, length, header, now)  # from the start: others of the stream were given up
        self._counters[_LATE] += count
        return None

    def _place(self, order: ReorderBuffer[bytes | _Block], ahead: int, n: int, count: int) -> int | None:
        """The number of the block in its stream; None if nothing of it is wanted any more, which is counted."""
        if ahead <= WINDOW:
            number = order.next + ahead
            if number not in order.waiting:
                return number
        elif ahead <= _U32 >> 1:
            number = order.next + ahead
            self._expire(order, order.pass_to(number - 1, self._ready_of(order)))
            return number
        else:
            behind = _U32 - ahead
            if behind >= WINDOW or order.lost >> behind & 1:
                self._counters[_LATE] += count
                return None
            if order.undone >> behind & 1:
                return order.next - 1 - behind
        self._counters[_UNNEEDED if n > 1 else _DUPLICATE] += count
        return None

    def _spare(self, block: _Block, view: memoryview, at: int, header: _Header) -> None:
        """A run of a complete block that has not gone on: data shards need not be recovered."""
        _, code, first, count, content = header
        if code != block.code or content != block.content:
            self._counters[_RUN_MALFORMED] += 1
            return
        self._counters[_UNNEEDED] += count
        shards = (1 << count) - 1 << first
        if shards & ~block.have & (1 << (code >> 8)) - 1:
            block.have |= shards
            start, size, at = first * block.each, count * block.each, at + _HEADER_BYTES
            block.area[start : start + size] = view[at : at + size]

    def _settle(self, order: ReorderBuffer[bytes | _Block], number: int, block: bytes | _Block, now: int) -> None:
        """A block has become complete: it goes on, or it waits for its turn."""
        ready = self._ready_of(order)
        if number == order.next:
            ready.append(block)
            gone = order.step(ready)
            if gone:
                self._expire(order, gone)
        elif number < order.next:
            order.finish(number)
            ready.append(block)
            self._counters[_OVERTAKEN] += 1
        else:
            until = order.wait(number, block, now)
            if self._buffers.used > self._plenty:
                self._expire(order, order.pass_to(number, ready))
            elif until < self._look_at:
                self._look_at = until

    def _recover(self, block: _Block) -> bool:
        """See to it that all data shards are there. False if they are not those that the checksum was made of."""
        n, m = block.code >> 8, block.code & 0xFF
        missing = (1 << n) - 1 & ~block.have
        if not missing:
            self._counters[_WHOLE] += 1
            return True
        shards = block.area[: (n + m) * block.each]
        self._codec.recover(shards, n, m, block.each, block.have)
        if self._codec.checksum(shards, n, m, block.each) != block.content & _U32:
            return False
        self._counters[_RECOVERED_1 - 1 + missing.bit_count()] += 1
        return True

    def _look(self, now: int) -> None:
        """Do what is due because time has passed."""
        for order in self._orders.values():
            last = order.over(now)
            if last >= order.next:
                self._expire(order, order.pass_to(last, self._ready_of(order)))
        oldest = next(iter(self._open.values()), None)
        while oldest is not None and oldest.began + KEEP_NS <= now:
            self._give_up(oldest)
            oldest = next(iter(self._open.values()), None)
        if oldest is None and now - max([order.heard for order in self._orders.values()], default=0) >= KEEP_NS:
            self._buffers.forget()
            self._open.clear()  # it is empty, but its table has grown
            for order in self._orders.values():
                order.begun.clear()
        self._look_at = (now if oldest is None else oldest.began) + KEEP_NS
        due = self.due()
        if due:
            self._look_at = min(due, self._look_at)

    def _make_room(self, size: int) -> bool:
        """Give up the oldest open blocks until so many bytes are free. False if that is not to be."""
        buffers = self._buffers
        while buffers.used + size > buffers.limit and self._open:
            self._give_up(next(iter(self._open.values())))
        return buffers.used + size <= buffers.limit

    def _give_up(self, block: _Block) -> None:
        del self._open[block.key]
        self._buffers.take_back(block.area)
        self._counters[_EXPIRED] += 1
        self._expire(block.order, block.order.give_up(block.number, self._ready_of(block.order)))

    def _expire(self, order: ReorderBuffer[bytes | _Block], gone: int) -> None:
        """So many blocks left the window undone; those of them that are open end here."""
        if gone:
            self._counters[_EXPIRED] += gone
            self._prune(order)

    def _prune(self, order: ReorderBuffer[bytes | _Block]) -> None:
        begun = order.begun
        floor = order.next - WINDOW if order.undone else order.next
        while begun and begun[0] < floor:
            number = heappop(begun)
            block = self._open.pop(order.stream << 32 | number & _U32, None)
            if block is not None:
                self._buffers.take_back(block.area)
                if number < order.first:
                    self._counters[_EXPIRED] += 1

    def _admit(self, key: int) -> ReorderBuffer[bytes | _Block]:
        """A stream that was not heard before, or not for long. It may take the place of another."""
        orders = self._orders
        if len(orders) >= STREAMS_MAX:
            self._drop(min(orders.values(), key=lambda order: order.heard))
        order = orders[key >> 32] = ReorderBuffer(key >> 32, key & _U32)
        return order

    def _drop(self, order: ReorderBuffer[bytes | _Block]) -> None:
        del self._orders[order.stream]
        for number in order.begun:
            block = self._open.pop(order.stream << 32 | number & _U32, None)
            if block is not None:
                self._buffers.take_back(block.area)
                self._counters[_EXPIRED] += 1
        for block in order.waiting.values():
            if type(block) is bytes:
                self._buffers.release(len(block) + SINGLE_BYTES)
            else:
                del self._complete[block.key]
                self._buffers.take_back(block.area)
            self._counters[_EXPIRED] += 1


_Header = tuple[int, int, int, int, int]
_header_at = Struct(">5xQHBBQ").unpack_from  # shard.RUN as stream and block, n and m, first, count, size and checksum
_HEADER_BYTES = shard.RUN_BYTES
_REST = shard.RUN_BYTES - framing.LENGTH.size
_frame_at = framing.FRAME.unpack_from
_U32 = 0xFFFFFFFF

LARGEST_BYTES = rounded(
    max(
        (n + m) * shard.shard_bytes(shard.BLOCK_BYTES_MAX, n, m)
        for n in range(1, shard.DATA_SHARDS_MAX + 1)
        for m in range(shard.PARITY_SHARDS_MAX + 1)
    )
)
"""The largest buffer that a block can need."""

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
