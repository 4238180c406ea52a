"""When the other end is told what has come of its segments.

    while segments come     each REPORT_NS, or as soon as SEGMENTS have come and LEAST_NS passed
    behind the last of them at AGAIN_NS after it: such a report may be lost, too, or say what was under way before
    while rows are missing  again and again, each time after twice as long

The other end takes a silence of 100 ms for a dark path. So at 10 % of losses one of 1000 pauses looks like one.
"""

from __future__ import annotations

from pipeline.policy.carrier_order import Kind
from pipeline.wire.control_datagram import Report
from workers.dgram.control import Control, Sender
from workers.dgram.reception import Reception

REPORT_NS = 5_000_000
LEAST_NS = 2_000_000
SEGMENTS = 256
AGAIN_NS = (10_000_000, 40_000_000)
AGAIN_MOST = 8
"""The last report of missing rows goes out 1.3 s after the last segment: such blocks are given up by then."""


class Reports:
    """Of all sessions of a worker."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._active: dict[Sender, Reception] = {}

    def add(self, reception: Reception, kind: Kind) -> None:
        """Segments of a session have come, in datagrams of this kind."""
        for sender in reception.active.values():
            sender.kind = kind
            self._active[sender] = reception
        reception.active.clear()

    def forget(self, reception: Reception) -> None:
        """The session has ended."""
        self._active = {sender: each for sender, each in self._active.items() if each is not reception}

    def due(self) -> int:
        """When the next report goes out (CLOCK_MONOTONIC ns); 0: none is due."""
        return min(map(_due, self._active), default=0)

    def send(self, now: int) -> None:
        """Send the reports that are due."""
        for sender in [each for each in self._active if _is_due(each, now)]:
            if not self._send(sender, self._active[sender], now):
                del self._active[sender]

    def _send(self, sender: Sender, reception: Reception, now: int) -> bool:
        """False if it was the last one for now."""
        counts = sender.counts
        counts.judge(now)
        counts.refused = reception.assembly.refused
        before = sender.reported_ns
        if not counts.is_new:
            sender.again += 1
        streams, incomplete = reception.assembly.progress(min(before, sender.heard_ns), before)
        sender.reported_ns, sender.reported = now, counts.received
        self._control.send_report(sender, Report(counts.counts(now), tuple(streams), tuple(incomplete)), now)
        return sender.again < len(AGAIN_NS) or (bool(incomplete) and sender.again < AGAIN_MOST)


def _due(sender: Sender) -> int:
    if sender.counts.is_new:
        return sender.reported_ns + REPORT_NS
    again = sender.again
    last, step = AGAIN_NS[-1], again - len(AGAIN_NS) + 1
    return sender.heard_ns + (AGAIN_NS[again] if step <= 0 else last << step)


def _is_due(sender: Sender, now: int) -> bool:
    if now >= _due(sender):
        return True
    return sender.counts.received - sender.reported >= SEGMENTS and now >= sender.reported_ns + LEAST_NS
