"""The reports about one path, as numbers: the rate, the losses, the round trip.

    on_sent        a burst has gone out
    take           a report has come; true unless a later one has come before
    lost_until     what went out by then has come, or is lost: the latest segment that has come, and how long that was
                   before the report; less some patience

A row may be overtaken. The patience with it grows when rows that were sent again turn out to have been on their way
(RFC 8985, 6.2), up to a round trip. It shrinks when that has not happened for long.

A path that goes dark begins anew: its rate, its log, its round trip. The sequence goes on, and so do the counts of the
other end; their growth until the first report is left out.

Reports count segments, and the rate needs bytes. Segments that have passed had so many bytes; of those the received
ones have their share. Counts are modulo 2^32. That of lost ones may go back, when a segment comes late.

Pure; owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.policy.datagram_rate import STARTUP, RateControl
from pipeline.wire.control_datagram import Counts
from workers.dgram.cut_plan import CutPlan, growth
from workers.dgram.large_segments import LargeSegments
from workers.dgram.sent_log import SentLog

MS = 1_000_000
PATIENCE_SHARE = 8  # of the shortest round trip
PATIENCE_KEPT_NS = 30_000 * MS
SMOOTHED = 8

_MASK = (1 << 32) - 1


class PathFeedback:
    """`sequence`: of the next segment. `sent`: bytes, `lost`: segments, ever. `smoothed`: round trip; 0: not known.

    `is_size_doubted`: no large segment arrives, and small ones do. The caller clears it.
    """

    def __init__(self, now: int) -> None:
        self.plan = CutPlan()
        self.sequence = 0
        self.sent = 0
        self.lost = 0
        self._counts = Counts(0, 0, 0, 0, 0, 0, 0, 0, 0)
        self._patience_ns = 0
        self._impatient_at = now
        self.begin(now)

    def begin(self, now: int) -> None:
        """The path is new, or was dark."""
        self.rate = RateControl(now)
        self.smoothed = 0
        self.highest = self.sequence - 1  # sequence that was reported
        self.lost_until = 0
        self._first, self._sent_before, self._lost_before = self.sequence, self.sent, self.lost
        self._log = SentLog(now, self.sequence - 1)
        self._large = LargeSegments(now, self.sequence - 1)
        self.is_size_doubted = False
        self._is_new = True  # no report has come
        self._marked = 0
        self._missing = 0  # segments, of those that have passed
        self._passed = 0  # bytes
        self._received = 0.0  # bytes
        self._mean = 0.0  # bytes of a segment

    def resume(self, pace: int, round_trip: int, now: int) -> None:
        """Go on as the process before: it sent so many bytes a second. Its path is as good as new otherwise."""
        self.rate.resume(pace, round_trip, now)
        self.smoothed = round_trip

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
        sent = self.sent - self._sent_before
        self._log.add(self.sequence - 1, sent, now)
        self._large.on_sent(self.sequence - 1, count, size, now)
        self.rate.on_sent(now, sent, self.sequence - self._first - 1, emptied)

    def take(self, counts: Counts, now: int) -> bool:
        newest = self.sequence - 1
        highest = newest - (newest - counts.highest & _MASK)
        if highest < max(self.highest, self._first):
            return False
        hold = 1000 * counts.age
        if highest == self.highest:
            self.lost_until = self._log.passed_ns + hold - self.patience_ns
            return True
        segments = highest - self.highest
        received = self._take_counts(counts, segments)
        passed = self._log.pass_by(highest)
        self._mean = (passed - self._passed) / segments
        self.highest, self._passed = highest, passed
        self._missing += segments - received
        self.is_size_doubted |= self._large.take(highest, segments - received, now)
        self._received = min(passed, self._received + received * self._mean)
        round_trip = max(1, now - hold - self._log.passed_ns)
        self.smoothed += (round_trip - self.smoothed) // SMOOTHED if self.smoothed else round_trip
        lost = max(0, self.lost - self._lost_before)
        received = int(self._received)
        self.rate.on_report(now, received, highest - self._first, hold, self._marked, lost, self._missing)
        self.lost_until = self._log.passed_ns + hold - self.patience_ns
        return True

    def _take_counts(self, counts: Counts, segments: int) -> int:
        """Segments that have come, of so many that have passed."""
        seen, self._counts = self._counts, counts
        received = growth(seen.received, counts.received)
        if self._is_new:
            self._is_new = False
            self.plan.begin(counts)
            return max(0, min(received, segments))
        self.lost = max(0, self.lost + growth(seen.lost, counts.lost))
        self._marked += growth(seen.marked, counts.marked)
        self.plan.take(counts)
        return received

    def was_impatient(self, now: int) -> None:
        """A row was sent again that had been on its way."""
        self._impatient_at = now
        self._patience_ns = min(max(self.rate.round_trip, MS), 2 * self.patience_ns)

    def tick(self, segment_bytes: int, now: int) -> None:
        self.rate.on_tick(now)
        rate = self.rate
        known = 0.0 if rate.phase == STARTUP else rate.rate
        self.plan.update(now, rate.pacing_rate, segment_bytes, self.smoothed, known)
        if now - self._impatient_at > PATIENCE_KEPT_NS:
            self._impatient_at = now
            self._patience_ns //= 2
