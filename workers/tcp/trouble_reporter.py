"""Reports for `status` why not all connections of a client's tcp worker stand: the supervisor hears of each change.

A worker reports at its start, since its predecessor may have reported trouble, and then what has changed, once in
INTERVAL_NS at most.
"""

from __future__ import annotations

from pipeline.policy.server_news import PresentTrouble
from pipeline.runtime.supervisor_channel import SupervisorChannel, TroubleReport

INTERVAL_NS = 500_000_000


class TroubleReporter:
    """`channel`: to the supervisor; `uplink`: its number, 0 of a client without."""

    def __init__(self, lane: int, channel: SupervisorChannel, uplink: int = 0) -> None:
        self._lane = lane
        self._uplink = uplink
        self._channel = channel
        self._reported: PresentTrouble | None = None
        self._due_ns = 0

    def tick(self, present: PresentTrouble, now: int) -> None:
        """Call often."""
        if present == self._reported or now < self._due_ns:
            return
        self._due_ns = now + INTERVAL_NS
        reason, failures, since_ns = present
        report: TroubleReport = {
            "lane": self._lane,
            "uplink": self._uplink,
            "trouble": reason,
            "failures": failures,
            "since_ns": since_ns,
        }
        if self._channel.ask(report):
            self._reported = present
