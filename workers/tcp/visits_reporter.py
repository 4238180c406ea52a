"""Tells the supervisor how a client's connections to each of its servers are, as soon as that changes.

The supervisor decides by it which server the client is at (pipeline.policy.server_choice). A worker reports at its
start, since its predecessor may have reported, and then each change, once in INTERVAL_NS at most.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.policy.server_choice import VisitReport
from pipeline.runtime.supervisor_channel import SupervisorChannel

INTERVAL_NS = 20_000_000


class VisitsReporter:
    """`channel`: to the supervisor."""

    def __init__(self, lane: int, channel: SupervisorChannel) -> None:
        self._lane = lane
        self._channel = channel
        self._reported: dict[int, VisitReport] = {}
        self._due_ns = 0

    def tick(self, reports: Mapping[int, VisitReport], now: int) -> None:
        """Call often. `reports`: by session number."""
        if reports == self._reported or now < self._due_ns:
            return
        self._due_ns = now + INTERVAL_NS
        if self._channel.ask({"lane": self._lane, "visits": [[number, *each] for number, each in reports.items()]}):
            self._reported = dict(reports)
