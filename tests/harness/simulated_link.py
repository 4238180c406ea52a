"""A link in simulated time: one bottleneck with a queue, the delays before and behind it, and what gets lost there.

Events are in one heap and happen at a whole ns. A packet's fate is settled when it comes to the bottleneck, since the
queue is first in, first out: `carry` says when it arrives, or that it does not. Nothing is drawn at random but losses,
from a generator with a seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

MS = 1_000_000
SECOND = 1_000_000_000
LOST = -1

Losses = Callable[[], bool]


class Clock:
    """The events to come, in order."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    def at(self, time: int, event: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (max(time, self.now), self._serial, event))

    def run_until(self, end: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, event = heapq.heappop(heap)
            event()
        self.now = end


def no_losses() -> bool:
    return False


def random_losses(share: float, seed: int = 1) -> Losses:
    draw = random.Random(seed).random
    return lambda: draw() < share


def bursts_of_losses(share: float, length: float, seed: int = 1) -> Losses:
    """A Gilbert model: bursts of geometric length with that mean, and that share of losses in all."""
    draw = random.Random(seed).random
    begin = share / length / (1 - share)
    lossy = False

    def lost() -> bool:
        nonlocal lossy
        lossy = draw() < (1 - 1 / length if lossy else begin)
        return lossy

    return lost


class Link:
    """`rate` in bytes a second, round trip in ns, a queue of `queue_bytes`; losses fall behind the queue.

    `policed`: bytes that a token bucket holds which refills at `rate`; there is no queue then. `marked_above`: bytes
    in the queue above which a packet gets a mark of ECN.
    """

    def __init__(
        self,
        clock: Clock,
        rate: float,
        round_trip: int,
        queue_bytes: float,
        losses: Losses = no_losses,
        *,
        policed: float = 0,
        marked_above: float = 0,
    ) -> None:
        self.clock = clock
        self.rate = rate
        self.round_trip = round_trip
        self.queue_bytes = queue_bytes
        self.losses = losses
        self.policed = policed
        self.marked_above = marked_above
        self.marked = False  # the packet that was carried last
        self.free_at = 0.0  # when the bottleneck will have sent all that is in its queue
        self._tokens = policed
        self._filled_at = 0
        self._latest = 0

    @property
    def back(self) -> int:
        return self.round_trip // 2

    def queued(self) -> float:
        """ns that a packet would wait now."""
        return max(0.0, self.free_at - self.clock.now)

    def change_rate(self, rate: float) -> None:
        self.free_at = self.clock.now + self.queued() * self.rate / rate
        self.rate = rate

    def pause(self, duration: int) -> None:
        """The bottleneck sends nothing for so long."""
        self.free_at = self.clock.now + self.queued() + duration

    def carry(self, size: int) -> int:
        """When a packet arrives that comes to the bottleneck now, or LOST."""
        now = self.clock.now
        if self.policed:
            self._tokens = min(self.policed, self._tokens + (now - self._filled_at) * self.rate / SECOND)
            self._filled_at = now
            if self._tokens < size:
                return LOST
            self._tokens -= size
            return now + self.round_trip - self.back if not self.losses() else LOST
        queued = max(0.0, self.free_at - now) * self.rate / SECOND
        if queued + size > self.queue_bytes:
            return LOST
        self.marked = 0 < self.marked_above < queued
        self.free_at = max(self.free_at, now) + size * SECOND / self.rate
        if self.losses():
            return LOST
        self._latest = max(self._latest, int(self.free_at) + self.round_trip - self.back)
        return self._latest
