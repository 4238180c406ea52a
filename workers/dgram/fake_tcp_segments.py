"""Segments into fake flows, many in one call. It stands in the place of workers.dgram.segment_socket.

Owned by the outbound duty.
"""

from __future__ import annotations

import time

from workers.dgram.fake_tcp_socket import FakeTcpSocket
from workers.dgram.path import Path, Pieces
from workers.dgram.segment_socket import REFUSED, SEGMENTS_MOST, explained

BURST_BYTES = 60 << 10
"""Of one call: less than the least window that an end announces, so that a burst fits in."""


class FakeTcpSegments:
    def __init__(self, fake_tcp: FakeTcpSocket, counters: memoryview) -> None:
        self._fake_tcp = fake_tcp
        self._counters = counters

    def most(self, segment_bytes: int) -> int:
        """Segments of this size that go into one call."""
        return min(SEGMENTS_MOST, BURST_BYTES // segment_bytes) or 1

    def send(self, pieces: Pieces, segment_bytes: int, count: int, path: Path) -> int:
        """Send so many segments of one size, whose bytes are the pieces. How many were taken, or why none was."""
        flows, address = self._fake_tcp.flows, path.address
        if flows is None or address is None:
            return REFUSED
        host, port = address
        try:
            flows.send(pieces, segment_bytes * count, segment_bytes, (host, port), time.monotonic_ns())
        except OSError as error:
            return explained(error, self._counters)
        return count
