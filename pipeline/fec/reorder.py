"""In which order the blocks of one stream go on, and what became of the last ones.

Blocks have u32 numbers in serial arithmetic (RFC 1982); in here they are unbounded. `next` is the block whose turn it
is: those before it have been passed. A block that is complete ahead of its turn waits; once it has waited long
enough, those before it that are not complete are passed, and what comes of them later goes on at once.

    block               is                                                           known by
    next and above      open or never seen                                           nothing
                        waiting: complete, and one before it is not                  `waiting`
    the WINDOW before   undone: passed while open or never seen, it may still come   `undone`
                        lost: given up                                               `lost`
                        done: handed on or dropped                                   neither
    before those        too old to tell

The methods that pass blocks put those that waited into `ready` and return how many left the window undone. A stream
that loses nothing has no bits set, and costs an addition for each block.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Generic, TypeVar

from pipeline.wire import framing

WINDOW = 1024
"""Blocks that a stream may be ahead of its turn, and behind it: a tenth of a second at 10 000 blocks a second."""

WAIT_NS = {
    framing.BULK: 100_000_000,  # a retransmission takes a round trip or two, and TCP inside takes disorder for loss
    framing.LIGHT: 10_000_000,  # copies are under way; these flows suffer more from delay than from disorder
}
"""How long a complete block waits for those before it."""

Content = TypeVar("Content")

_EVERY = (1 << WINDOW) - 1


class ReorderBuffer(Generic[Content]):
    """One stream. `first` is the first block seen of it; those before that one may come yet."""

    def __init__(self, stream: int, first: int) -> None:
        self.stream = stream
        self.heard = 0  # when, for the owner
        self.begun: list[int] = []  # a heap of the blocks that the owner had open, those of the window at least
        self.next = self.first = first
        self.waiting: dict[int, Content] = {}
        self.undone = _EVERY  # bit i stands for block next - 1 - i
        self.lost = 0
        self._wait_ns = WAIT_NS[stream & 1]
        self._queue: list[int] = []  # a heap of the blocks that wait
        self._turns: deque[tuple[int, int]] = deque()  # (until when, block), and some that wait no more

    def wait(self, block: int, content: Content, now: int) -> int:
        """A block is complete ahead of its turn. Returns until when it waits."""
        until = now + self._wait_ns
        self.waiting[block] = content
        heappush(self._queue, block)
        self.due()
        self._turns.append((until, block))
        return until

    def due(self) -> int:
        """Until when the first one waits; 0 if none does."""
        turns = self._turns
        while turns and turns[0][1] < self.next:
            turns.popleft()
        return turns[0][0] if turns else 0

    def over(self, now: int) -> int:
        """The last block that has waited long enough; one before `next` if there is none."""
        last = self.next - 1
        turns = self._turns
        while turns and turns[0][0] <= now:
            last = max(last, turns.popleft()[1])
        return last

    def step(self, ready: deque[Content]) -> int:
        """Pass the next block, which is done, and those that waited for it alone."""
        if self.waiting or self.undone or self.lost:
            return self._move(1, 0) + self._follow(ready)
        self.next += 1
        return 0

    def pass_to(self, last: int, ready: deque[Content]) -> int:
        """Pass all up to `last`, and those that waited for them alone."""
        return self._leave(last, ready) + self._follow(ready)

    def give_up(self, block: int, ready: deque[Content]) -> int:
        """Pass all up to `block`, which may not come any more."""
        gone = self._leave(block, ready)
        behind = self.next - 1 - block
        if behind < WINDOW:
            self.undone &= ~(1 << behind)
            self.lost |= 1 << behind
        return gone + self._follow(ready)

    def finish(self, block: int) -> None:
        """A block that was passed is done."""
        behind = self.next - 1 - block
        if behind < WINDOW:
            self.undone &= ~(1 << behind)

    def _leave(self, last: int, ready: deque[Content]) -> int:
        queue = self._queue
        gone = 0
        while queue and queue[0] <= last:
            block = heappop(queue)
            gone += self._skip(block)
            ready.append(self.waiting.pop(block))
            gone += self._move(1, 0)
        return gone + self._skip(last + 1)

    def _follow(self, ready: deque[Content]) -> int:
        queue = self._queue
        gone = 0
        while queue and queue[0] == self.next:
            ready.append(self.waiting.pop(heappop(queue)))
            gone += self._move(1, 0)
        return gone

    def _skip(self, block: int) -> int:
        """Pass those before `block` undone."""
        count = block - self.next
        if count <= 0:
            return 0
        near = min(count, WINDOW)
        gone = self._move(near, (1 << near) - 1)
        self.next = block
        return gone + count - near

    def _move(self, count: int, undone: int) -> int:
        self.next += count
        undone |= self.undone << count
        self.undone = undone & _EVERY
        self.lost = self.lost << count & _EVERY
        gone = undone >> WINDOW
        known = self.next - WINDOW - self.first  # whether there was any before the first, nobody knows
        if known < count:
            gone &= (1 << max(0, known)) - 1
        return gone.bit_count()
