"""Delivery samples: how long segments took to the other end and how fast they got there, from reports about them.

A report names the latest segment that has come. All before it have come or are lost: they have passed. The rate of a
sample is that of draft-cheng-iccrg-delivery-rate-estimation: the bytes that passed between the sending of the latest
segment and its report, over the longer of two times. These are the time in which they were sent and the time in which
they arrived. So neither a burst of segments nor a burst of reports makes a path look faster than it is.

    limited       there was nothing more to send behind a burst before it: the sample says little about the path
    new round     the latest segment was sent after the report that began this round: a round trip has passed
    merged        bursts sent within a 128th of the shortest round trip share a note; so NOTES of them last for
                  eight such round trips. Behind a full ring all bursts share the last note, and seem slower

The numbers of a note lie in lists that never grow. Reports may be lost or late, since they carry sums. One that is
older than another one says nothing.
"""

from __future__ import annotations

NOTES = 1024
MERGED_SHIFT = 7


class DeliverySamples:
    """The fields below `_of the latest sample_` are those of the last report that `on_report` took."""

    def __init__(self, now: int) -> None:
        self.under_way = 0
        self.heard_at = now
        self.merged_ns = 0
        # of the latest sample
        self.round_trip = 0
        self.interval = 1  # ns in which `received` and `passed` came
        self.received = 0  # bytes
        self.passed = 0  # bytes, lost ones included
        self.segments = 0  # that passed since the report before
        self.lost = 0  # of those
        self.missing = 0  # of those: lost, or on their way yet
        self.ce = 0  # of those
        self.limited = False
        self.new_round = False
        self.sent_at = now
        self.sent_in = 0  # the phase in which it was sent
        self.sent_with = 0  # bytes under way then
        # sums
        self._sent = self._passed = self._received = self._lost = self._missing = self._ce = 0
        self._sequence = self._reported = -1
        self._arrived_at = now
        self._limited_until = -1  # bytes sent
        self._round_end = 0  # bytes passed
        # notes: those from _tail to _head are of segments that have not passed
        self._head = self._tail = 0
        self._before_sequence, self._before_sent = -1, 0  # the note before the tail
        self._sequences = [-1] * NOTES
        self._sents = [0] * NOTES
        self._times = [0] * NOTES
        self._phases = [0] * NOTES
        self._limiteds = [False] * NOTES
        # as of the latest report when it was sent
        self._receiveds = [0] * NOTES
        self._passeds = [0] * NOTES
        self._arriveds = [0] * NOTES
        self._senders = [0] * NOTES

    @property
    def passed_ever(self) -> int:
        """Bytes."""
        return self._passed

    def on_sent(self, now: int, sent: int, highest: int, emptied: bool, phase: int) -> None:
        """`emptied`: nothing waits behind this burst."""
        if not self.under_way:
            self.sent_at = self._arrived_at = self.heard_at = now
        head = self._head
        at = (head - 1) % NOTES
        kept = head - self._tail
        if not kept or (kept < NOTES and (now - self._times[at] > self.merged_ns or self._phases[at] != phase)):
            at = head % NOTES
            self._head = head + 1
            self._times[at] = now
            self._phases[at] = phase
            self._limiteds[at] = self._passed <= self._limited_until
            self._receiveds[at] = self._received
            self._passeds[at] = self._passed
            self._arriveds[at] = self._arrived_at
            self._senders[at] = self.sent_at
        self._sequences[at] = highest
        self._sents[at] = sent
        self.under_way += sent - self._sent
        self._sent, self._sequence = sent, highest
        if emptied:
            self._limited_until = sent

    def on_report(self, now: int, received: int, highest: int, hold: int, ce: int, lost: int, missing: int = 0) -> bool:
        """True if the report says something new."""
        if not self._reported < highest <= self._sequence:
            return False
        at = self._advance(highest)
        sequence, sent = self._sequences[at], self._sents[at]
        size = (sent - self._before_sent) // (sequence - self._before_sequence)
        passed = sent - (sequence - highest) * size
        arrived = now - hold
        sent_at = self._times[at]
        self.round_trip = max(1, arrived - sent_at)
        self.interval = max(1, sent_at - self._senders[at], arrived - self._arriveds[at])
        self.received = received - self._receiveds[at]
        self.passed = passed - self._passeds[at]
        self.segments = highest - self._reported
        self.lost = lost - self._lost
        self.missing = missing - self._missing
        self.ce = ce - self._ce
        self.limited = self._limiteds[at]
        self.new_round = self._passeds[at] >= self._round_end
        if self.new_round:
            self._round_end = passed
        self.sent_at, self.sent_in = sent_at, self._phases[at]
        self.sent_with = sent - self._passeds[at]
        self.under_way = self._sent - passed
        self.heard_at = now
        self._arrived_at, self._passed, self._received = arrived, passed, received
        self._reported, self._lost, self._missing, self._ce = highest, lost, missing, ce
        return True

    def give_up(self, now: int) -> None:
        """All bytes under way count as lost, until a report says otherwise."""
        self.under_way, self.heard_at = 0, now

    def _advance(self, highest: int) -> int:
        sequences, tail = self._sequences, self._tail
        at = tail % NOTES
        while sequences[at] < highest:
            self._before_sequence, self._before_sent = sequences[at], self._sents[at]
            tail += 1
            at = tail % NOTES
        self._tail = tail
        return at
