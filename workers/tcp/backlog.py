"""The backlog of one peer: items copied out of the rings, so that their slots need not wait.

    spill         the items of a queue whose connection takes nothing, or whose peer has used up its rate. They stay in
                  that queue
    unassigned    items of a peer that has no connection here. They wait for one

A backlog holds at most `limit` bytes; what does not fit is dropped, and the caller counts it. The unsent part of a
partial item is in its queue and does not count. Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from workers.tcp.send_item import SendItem
from workers.tcp.send_queue import SendQueue


class Backlog:
    """`used`: the bytes of all copies that are not finished."""

    in_ring: ClassVar[bool] = False
    lane = 0

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.unassigned: deque[SendItem] = deque()

    def copy_out(self, item: SendItem) -> SendItem | None:
        """A copy that needs no slot, or None for want of room; the slot need not wait for the item either way."""
        if not item.source.in_ring:
            return item
        item.source.finish(item)
        if self.used + item.size > self.limit:
            return None
        self.used += item.size
        return item._replace(source=self, head=item.head and bytes(item.head), body=bytes(item.body))

    def finish(self, item: SendItem) -> None:
        self.used -= item.size

    def spill(self, queue: SendQueue) -> int:
        """Copy a queue's items out of their slots, oldest first. The number of items dropped for want of room."""
        queue.copy_out_partial()
        dropped = 0
        for items in (queue.light, queue.bulk):
            in_slots = []
            while items and (items[-1].source.in_ring or queue.mixed):  # else those in front are copies already
                in_slots.append(items.pop())
            for item in reversed(in_slots):
                copied = self.copy_out(item)
                if copied is None:
                    dropped += 1
                else:
                    items.append(copied)
        queue.mixed = False
        return dropped

    def add_unassigned(self, item: SendItem) -> bool:
        """Keep an item until its peer has a connection; False if it is dropped for want of room."""
        copied = self.copy_out(item)
        if copied is None:
            return False
        self.unassigned.append(copied)
        return True

    def drop_unassigned(self) -> int:
        """Drop what no connection came for. The number of items."""
        dropped = len(self.unassigned)
        for item in self.unassigned:
            item.source.finish(item)
        self.unassigned.clear()
        return dropped
