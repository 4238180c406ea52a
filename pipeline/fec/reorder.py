"""The order in which the blocks of one stream are delivered, and what became of the latest ones.

Blocks have u32 numbers in serial arithmetic (RFC 1982); in this file they are unbounded. `next` is the block whose
turn it is: the stream has passed all blocks before it. A block that is complete ahead of its turn waits. Once it has
waited long enough, the stream passes the incomplete blocks before it. If such a block becomes complete later, it is
delivered at once.

    block                state                                                        known by
    next and above       open, or never seen                                          nothing
                         waiting: complete, but a block before it is not              `waiting`
    the REORDER_WINDOW   undone: passed while open or never seen; it may still come   `undone`
    before next          lost: given up                                               `lost`
                         done: delivered or dropped                                   neither
    before those         unknown: too old

The methods that pass blocks append the waiting blocks to `ready`, and return how many blocks left the window undone.
A stream that loses nothing has no bit set, and costs an addition for each block.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Generic, TypeVar

from pipeline.wire import framing

REORDER_WINDOW = 1024
"""How many blocks a block may be ahead of its turn, or behind it: a tenth of a second at 10 000 blocks a second."""

WAIT_NS = {
    framing.BULK: 100_000_000,  # a retransmission takes a round trip or two, and TCP inside takes disorder for loss
    framing.LIGHT: 10_000_000,  # copies are under way; these flows suffer more from delay than from disorder
}
"""How long a complete block waits for the blocks before it."""

WAIT_OF_PATHS_NS = 200_000_000
"""It waits for so long where the peer has several uplinks: what one of them has taken may go again on another."""

TORN_NS = 100_000_000
"""After a decoder has died: how long its successor may meet blocks of which the dead one had some shards. Nobody will
complete them, so the blocks behind them wait no longer than light ones."""

Content = TypeVar("Content")

_WHOLE_WINDOW = (1 << REORDER_WINDOW) - 1


class ReorderBuffer(Generic[Content]):
    """The stream `number`. `first` is the block that was seen first; blocks before it may still come.

    `torn_until_ns`: until then blocks may be torn (TORN_NS); 0 for never. `wait_ns`: how long a complete block waits
    for those before it; the owner may change it.

    Four attributes are the owner's. `last_received_ns` is when a run of the stream came last, and `last_wanted_ns` when
    one came of a block that was wanted. `strays` counts those since then that were far behind. `opened` is a heap of
    the blocks that the owner has opened, at least those of the window.
    """

    def __init__(self, number: int, first: int, torn_until_ns: int = 0, wait_ns: int = 0) -> None:
        self.number = number
        self.last_received_ns = self.last_wanted_ns = 0
        self.strays = 0
        self.opened: list[int] = []
        self.next = self.first = first
        self.waiting: dict[int, Content] = {}
        self.undone = _WHOLE_WINDOW  # bit i stands for block next - 1 - i
        self.lost = 0
        self.wait_ns = wait_ns or WAIT_NS[number & 1]
        self._torn_until_ns = torn_until_ns
        self._queue: list[int] = []  # a heap of the waiting blocks
        self._deadlines: deque[tuple[int, int]] = deque()  # (waits until, block); blocks that were passed stay in it

    def add_waiting(self, block: int, content: Content, now: int) -> int:
        """Add a block that is complete ahead of its turn. Returns until when it waits."""
        until = now + (self.wait_ns if now >= self._torn_until_ns else WAIT_NS[framing.LIGHT])
        self.waiting[block] = content
        heappush(self._queue, block)
        self.due()
        self._deadlines.append((until, block))
        return until

    def due(self) -> int:
        """Until when the block that waited longest waits; 0 if no block waits."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][1] < self.next:
            deadlines.popleft()
        return deadlines[0][0] if deadlines else 0

    def expired_up_to(self, now: int) -> int:
        """The last block that has waited long enough; next - 1 if there is none."""
        last = self.next - 1
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            last = max(last, deadlines.popleft()[1])
        return last

    def advance(self, ready: deque[Content]) -> int:
        """Pass the next block, which is done, and the waiting blocks directly behind it."""
        if self.waiting or self.undone or self.lost:
            return self._shift(1, 0) + self._pass_following(ready)
        self.next += 1
        return 0

    def skip_to(self, last: int, ready: deque[Content]) -> int:
        """Pass all blocks up to `last`, and the waiting blocks directly behind it."""
        return self._pass_up_to(last, ready) + self._pass_following(ready)

    def give_up(self, block: int, ready: deque[Content]) -> int:
        """Pass all blocks up to `block`, which is lost, and the waiting blocks directly behind it."""
        left = self._pass_up_to(block, ready)
        behind = self.next - 1 - block
        if behind < REORDER_WINDOW:
            self.undone &= ~(1 << behind)
            self.lost |= 1 << behind
        return left + self._pass_following(ready)

    def mark_done(self, block: int) -> None:
        """A block that the stream has passed is done."""
        behind = self.next - 1 - block
        if behind < REORDER_WINDOW:
            self.undone &= ~(1 << behind)

    def _pass_up_to(self, last: int, ready: deque[Content]) -> int:
        queue = self._queue
        left = 0
        while queue and queue[0] <= last:
            block = heappop(queue)
            left += self._pass_undone(block)
            ready.append(self.waiting.pop(block))
            left += self._shift(1, 0)
        return left + self._pass_undone(last + 1)

    def _pass_following(self, ready: deque[Content]) -> int:
        queue = self._queue
        left = 0
        while queue and queue[0] == self.next:
            ready.append(self.waiting.pop(heappop(queue)))
            left += self._shift(1, 0)
        return left

    def _pass_undone(self, block: int) -> int:
        """Pass the blocks before `block`, none of which is done."""
        count = block - self.next
        if count <= 0:
            return 0
        near = min(count, REORDER_WINDOW)
        left = self._shift(near, (1 << near) - 1)
        self.next = block
        return left + count - near

    def _shift(self, count: int, undone: int) -> int:
        """Move the window by `count` blocks; `undone` has a bit for each of them that is. How many left it undone."""
        self.next += count
        undone |= self.undone << count
        self.undone = undone & _WHOLE_WINDOW
        self.lost = self.lost << count & _WHOLE_WINDOW
        left = undone >> REORDER_WINDOW
        known = self.next - REORDER_WINDOW - self.first  # whether there was a block before the first is not known
        if known < count:
            left &= (1 << max(0, known)) - 1
        return left.bit_count()
