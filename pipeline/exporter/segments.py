"""TCP segments that the kernel has sent, and sent again, added up over all connections: numbers that only grow. Pure.

The kernel counts for each connection, and its count goes with the connection. Here what a connection adds from one
snapshot to the next is added to the total; the last second of a connection is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class SegmentTotals:
    """From 0, from the start of the exporter on."""

    def __init__(self) -> None:
        self.sent = 0
        self.resent = 0
        self._counts: dict[tuple[str, int], tuple[int, int]] | None = None  # by worker and serial of the connection

    def add(self, connections: Iterable[Mapping[str, Any]]) -> None:
        """The connections of the next snapshot. Those of the first one count from then on."""
        counts = {
            (each["worker"], each["serial"]): (each["sent_segments"], each["resent_segments"]) for each in connections
        }
        if self._counts is not None:
            for key, (sent, resent) in counts.items():
                sent_before, resent_before = self._counts.get(key, (0, 0))
                self.sent += max(0, sent - sent_before)
                self.resent += max(0, resent - resent_before)
        self._counts = counts
