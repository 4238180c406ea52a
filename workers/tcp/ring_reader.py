"""One outbound ring as a tcp worker reads it. Owned by the outbound duty."""

from __future__ import annotations

from typing import ClassVar

from pipeline.runtime.port import Port
from workers.tcp.send_item import SendItem


class RingReader:
    """The first `scanned` slots behind the port's cursor have been visited.

    `marks_class`: the ring has slots of both traffic classes, and the mark of a slot says of which it is.
    By slot index: `unfinished`, the items of a slot that are not finished, and `skippable`, the shards of its block
    that this worker may still leave unsent.
    """

    in_ring: ClassVar[bool] = True

    def __init__(self, port: Port, kind: str) -> None:
        self.port = port
        self.kind = kind
        self.marks_class = kind in ("transit", "returned")
        self.lane = port.lane
        self.scanned = 0
        self.unfinished = [0] * port.ring.capacity
        self.skippable = [0] * port.ring.capacity

    def unscanned(self) -> int:
        """Slots that have not been visited."""
        return self.port.ready() - self.scanned

    def finish(self, item: SendItem) -> None:
        self.unfinished[item.slot_index] -= 1

    def release_finished(self) -> int:
        """Hand on the slots whose items are all finished, up to the first that is not. Their number."""
        port, unfinished, scanned = self.port, self.unfinished, self.scanned
        done = 0
        while done < scanned and not unfinished[port.index(done)]:
            done += 1
        if done:
            self.scanned = scanned - done
            port.advance(done)
        return done

    def distance(self, slot_index: int) -> int:
        """How many slots behind the port's cursor a slot is."""
        return (slot_index - self.port.cursor) & (self.port.ring.capacity - 1)
