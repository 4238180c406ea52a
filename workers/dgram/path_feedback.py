"""What reports say about one path, as numbers: the rate, the losses, the round trip.

    on_sent        a burst has gone out
    take           a report has come; true unless a later one has come before
    lost_until     what went out by then has come, or is lost: the latest segment that has come, and how long that was
                   before the report; less some patience

A row may be overtaken. The patience with it grows when rows that were sent again turn out to have been on their way
(RFC 8985, 6.2), up to a round trip. It shrinks when that has not happened for long.

Reports count segments, and the rate needs bytes. Segments that have passed had so many bytes; of those the received
ones have their share. Counts are modulo 2^32. That of lost ones may go back, when a segment comes late.

Pure; owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.policy.datagram_rate import RateControl
from pipeline.wire.control_datagram import Counts
from workers.dgram.cut_plan import CutPlan, growth
from workers.dgram.sent_log import SentLog

MS = 1_000_000
PATIENCE_SHARE = 8  # of the shortest round trip
PATIENCE_KEPT_NS = 30_000 * MS
SMOOTHED = 8

_MASK = (1 << 32) - 1


class PathFeedback:
    """`sequence`: of the next segment. `sent`: bytes, `lost`: segments, ever. `smoothed`: round trip; 0: not known."""

    def __init__(self, now: int) -> None:
        self.rate = RateControl(now)
        self.plan = CutPlan()
        self.sequence = 0
        self.sent = 0
        self.lost = 0
        self.smoothed = 0
        self.highest = -1  # sequence that was reported
        self.lost_until = 0
        self._log = SentLog(now)
        self._counts = Counts(0, 0, 0, 0, 0, 0, 0, 0, 0)
        self._marked = 0
        self._passed = 0  # bytes
        self._received = 0.0  # bytes
        self._mean = 0.0  # bytes of a segment
        self._patience_ns = 0
        self._impatient_at = now

    @property
    def patience_ns(self) -> int:
        return max(MS, self.rate.round_trip // PATIENCE_SHARE, self._patience_ns)

    @property
    def is_all_passed(self) -> bool:
        """Whether nothing is under way that a report could speak of."""
        return self.highest == self.sequence - 1

    def on_sent(self, count: int, size: int, emptied: bool, now: int) -> None:
        self.sequence += count
        self.sent += size
        self._log.add(self.sequence - 1, self.sent, now)
        self.rate.on_sent(now, self.sent, self.sequence - 1, emptied)

    def take(self, counts: Counts, now: int) -> bool:
        newest = self.sequence - 1
        highest = newest - (newest - counts.highest & _MASK)
        if highest < self.highest or highest < 0:
            return False
        hold = 1000 * counts.age
        if highest == self.highest:
            self.lost_until = self._log.passed_ns + hold - self.patience_ns
            return True
        seen, self._counts = self._counts, counts
        passed = self._log.pass_by(highest)
        self._mean = (passed - self._passed) / (highest - self.highest)
        self.highest, self._passed = highest, passed
        self._received = min(passed, self._received + growth(seen.received, counts.received) * self._mean)
        self.lost = max(0, self.lost + growth(seen.lost, counts.lost))
        self._marked += growth(seen.marked, counts.marked)
        round_trip = max(1, now - hold - self._log.passed_ns)
        self.smoothed += (round_trip - self.smoothed) // SMOOTHED if self.smoothed else round_trip
        self.rate.on_report(now, int(self._received), highest, hold, self._marked, self.lost)
        self.plan.take(counts, now)
        self.lost_until = self._log.passed_ns + hold - self.patience_ns
        return True

    def was_impatient(self, now: int) -> None:
        """A row was sent again that had been on its way."""
        self._impatient_at = now
        self._patience_ns = min(max(self.rate.round_trip, MS), 2 * self.patience_ns)

    def tick(self, segment_bytes: int, now: int) -> None:
        self.rate.on_tick(now)
        self.plan.update(now, self.rate.pacing_rate, segment_bytes, self.smoothed)
        if now - self._impatient_at > PATIENCE_KEPT_NS:
            self._impatient_at = now
            self._patience_ns //= 2
