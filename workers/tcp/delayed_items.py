"""Send items that go out a little later than the rest of their slot, so that one burst of losses does not take both.

    light    each further copy of a packet waits a spacing longer than the one before it, LIGHT_SPACING_NS at least: the
             first one is held up by no other, at either end
    bulk     the last run of a block waits a spacing, if bursts have been seen and the block can do without it

How long the spacing is follows from the bursts that were seen (`pipeline.policy.loss_bursts`).

Items that wait are copied, so their slot goes on. At most BYTES_MOST wait. Where more would have to, a run does not
wait, and light copies go out before they are due, those first that have waited longest. So they keep their order: a
copy that passed others on its connection could come before the packets of its flow that are in front of it. A copy that
is due while its connection takes nothing waits in the queue, until it is dropped (`workers.tcp.peer_sender`).

Owned by the outbound duty.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import ClassVar

from workers.tcp.send_item import SendItem

LIGHT_SPACING_NS = 1_000_000
BYTES_MOST = 262144


def copy_spacing_ns(spacing_ns: int) -> int:
    """Between two copies of a light packet, where bursts of losses call for `spacing_ns` between all."""
    return max(LIGHT_SPACING_NS, spacing_ns)


_Delayed = tuple[int, int, int, int, SendItem]  # due, number in the order of arrival, peer handle, place, item


class DelayedItems:
    """`next_due`: when the next item goes out, CLOCK_MONOTONIC ns; 0 if there is none, 1 if too much waits."""

    in_ring: ClassVar[bool] = False
    lane = 0

    def __init__(self) -> None:
        self._heap: list[_Delayed] = []
        self._added = 0
        self._used = 0  # bytes of all that are not finished
        self._given = 0  # and of the light copies among them that are in queues now
        self.next_due = 0

    @property
    def fill_queues(self) -> bool:
        """Whether light copies for connections that take nothing have become too many."""
        return self._given > BYTES_MOST

    @property
    def _is_full(self) -> bool:
        return self._used - self._given > BYTES_MOST

    def add(self, item: SendItem, due: int, peer_handle: int, place: int) -> bool:
        """Copy an item out of its slot, which it holds up no longer. False for a run if too much waits already.

        `place`: of its connection, among those of its peer and class.
        """
        if not item.light and self._used + item.size > BYTES_MOST:
            return False
        self._used += item.size
        self._added += 1
        copied = item._replace(source=self, head=item.head and bytes(item.head), body=bytes(item.body))
        heappush(self._heap, (due, self._added, peer_handle, place, copied))
        self.next_due = 1 if self._is_full else self._heap[0][0]
        return True

    def pop(self, now: int) -> tuple[int, int, SendItem] | None:
        """The next item that is due, or has to make room, with its peer handle and the place of its connection."""
        heap = self._heap
        if not heap or (heap[0][0] > now and not self._is_full):
            self.next_due = heap[0][0] if heap else 0
            return None
        _, _, peer_handle, place, item = heappop(heap)
        self._given += item.size * item.light
        return peer_handle, place, item

    def finish(self, item: SendItem) -> None:
        self._used -= item.size
        self._given -= item.size * item.light
