"""Backpressure: while rings are full, the reader waits, or it reads on and queues packets.

A full ring stalls the reader, and the kernel's own queue tells the sender. On a fast path a slot is soon free again. On
a slow path the reader reads on instead, so that light flows neither wait for a slot nor queue in TUN behind everything
else. Bulk packets that find no slot then go into the overflow queue, and are dropped once that is full.

Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pipeline.counters import ID
from workers.tun.packer import BULK_FULL, LIGHT_FULL

PATIENCE_NS = 5_000_000
"""A ring that has been full for so long belongs to a slow path, or to a worker that is being replaced."""

SLOW_NS = 200_000_000
"""For so long after that, the reader does not wait for the next full ring at all."""

SPILL_NS = 150_000_000
"""The light ring may be full for so long before its flows become bulk: a killed tcp worker is back by then."""

OVERFLOW_BYTES = 4 << 20
"""Bytes of the overflow queue: a TCP connection in the tunnel has as many under way before it notices the full ring."""

_RING_FULL_WAITS = ID["tun.ring_full_waits"]
_DROPPED_RING_FULL = ID["tun.dropped_ring_full"]


class BackpressureState:
    """Since when rings are full, and until when the path counts as slow: CLOCK_MONOTONIC ns, 0 for never.

    `waits`: the reader waits for a free slot, not for packets.
    """

    def __init__(self, counters: memoryview) -> None:
        self._counters = counters
        self.waits = False
        self._full_since_ns = 0
        self._light_full_since_ns = 0
        self._slow_until_ns = 0

    @property
    def is_calm(self) -> bool:
        """Whether no ring was full at the last burst."""
        return not (self.waits or self._full_since_ns or self._light_full_since_ns)

    def must_wait(self, now: int, full: int, stopping: bool) -> bool:
        """Whether the reader waits in this burst, in which the rings `full` (BULK_FULL, LIGHT_FULL) have no room."""
        if not full:
            self.waits = False
            self._full_since_ns = self._light_full_since_ns = 0
            return False
        if full & BULK_FULL and not self._reads_despite_full(now, stopping):
            self.waits = True
            return True
        self.waits = self._light_ring_blocks(now, full & LIGHT_FULL)
        if not (self.waits or full & BULK_FULL):
            self._full_since_ns = 0
        return self.waits

    def _reads_despite_full(self, now: int, stopping: bool) -> bool:
        """Whether the reader reads on although no slot is free. On a fast path, and while it stops, it waits."""
        if not self._full_since_ns:
            self._full_since_ns = now
            self._counters[_RING_FULL_WAITS] += 1
        if (now - self._full_since_ns < PATIENCE_NS and now > self._slow_until_ns) or stopping:
            return False
        self._slow_until_ns = now + SLOW_NS
        return True

    def _light_ring_blocks(self, now: int, full: int) -> bool:
        """Whether the light ring is full, and not for long: a burst that becomes bulk would overtake itself."""
        if not full:
            self._light_full_since_ns = 0
            return False
        if not self._light_full_since_ns:
            self._light_full_since_ns = now
            self._counters[_RING_FULL_WAITS] += 1
        return now - self._light_full_since_ns < SPILL_NS


class OverflowQueue:
    """Packets that have been read and found no slot, in their order."""

    def __init__(self, counters: memoryview) -> None:
        self._counters = counters
        self._bytes = 0
        self.packets: deque[bytes] = deque()

    def append(self, packet: bytes) -> None:
        """Queue a packet; it is dropped, counted, if the queue is full."""
        if self._bytes + len(packet) > OVERFLOW_BYTES:
            self._counters[_DROPPED_RING_FULL] += 1
        else:
            self.packets.append(packet)
            self._bytes += len(packet)

    def drain(self, retry: Callable[[bytes], bool]) -> None:
        """Give packets to `retry` until the queue is empty, or until one is not accepted."""
        packets = self.packets
        while packets and retry(packets[0]):
            self._bytes -= len(packets.popleft())
