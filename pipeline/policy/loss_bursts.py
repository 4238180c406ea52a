"""Bursts of losses: how far apart in time the copies of a packet, and the runs of a block, have to go out.

A burst is losses in a row on the path. It takes all that passes meanwhile, whatever the connection. Its mean length
shows in how unevenly the losses fall. Let an update have n lost segments where p * s were expected, the share p of s.
The index of dispersion, the mean of (n - p * s)^2 over the mean of p * s, is

    1              if segments are lost one by one (Poisson)
    2 * b - 1      in bursts of b segments on average, if their lengths are geometric (Gilbert)

    an index above 1 by more than CERTAIN times what       a spacing of SPACING_BURSTS mean bursts: the time that these
    chance makes of losses one by one                      connections take to send so many segments; at least
                                                           SPACING_LEAST_NS
    a longer one would not be waited for                   SPACING_MOST_NS. Where little is sent, a burst may be longer
    no need for it in FORGET_NS                            the longest spacing that was needed meanwhile

A spacing that works hides what it was made for: then the copies are not lost together any more. Hence FORGET_NS.
"""

from __future__ import annotations

import math

from pipeline.policy.segment_counts import grown

LEAST_LOSSES = 6
CERTAIN = 4  # standard deviations; of k updates with m losses each it is the root of (2 + 1 / m) / k
KEPT = 1 - 1 / 300  # of what is known, in each update in which something was sent: half a minute
SPACING_BURSTS = 3  # of geometric lengths, one in twenty is longer
SPACING_LEAST_NS = 2_000_000
SPACING_MOST_NS = 7_000_000
"""The second copy comes so much later, and the third as much again: sooner than the first one would be sent again."""
FORGET_NS = 120_000_000_000


class LossBursts:
    """`spacing_ns`: the time between two copies, or runs, that a burst seldom bridges; 0: there are no bursts."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, int]] = {}  # resent, sent, by connection
        self._updated_at = 0
        self._updates = self._seconds = self._lost = self._sent = 0.0
        self._lost_lost = self._lost_sent = self._sent_sent = 0.0  # sums of products
        self._needed_at = 0  # when a spacing as long as now was needed
        self._needed_since = 0  # the longest one that was needed after that
        self.spacing_ns = 0

    def update(self, connections: dict[int, tuple[int, int]], now: int) -> int:
        """The spacing, given the segments sent again and sent of each connection since its beginning. `now`: ns."""
        lost = sent = 0
        for serial, (resent_now, sent_now) in connections.items():
            resent_before, sent_before = self._before.get(serial, (resent_now, sent_now))
            lost += max(0, resent_now - resent_before)
            sent += grown(sent_now, sent_before)
        self._before = connections
        seconds = (now - self._updated_at) / 1e9 if self._updated_at else 0.0
        self._updated_at = now
        if sent:
            self._add(lost, sent, seconds)
        if self.spacing_ns or lost:
            self._follow(self._needed(), now)
        return self.spacing_ns

    def _add(self, lost: int, sent: int, seconds: float) -> None:
        self._updates = self._updates * KEPT + 1
        self._seconds = self._seconds * KEPT + seconds
        self._lost = self._lost * KEPT + lost
        self._sent = self._sent * KEPT + sent
        self._lost_lost = self._lost_lost * KEPT + lost * lost
        self._lost_sent = self._lost_sent * KEPT + lost * sent
        self._sent_sent = self._sent_sent * KEPT + sent * sent

    def _needed(self) -> int:
        if self._lost < LEAST_LOSSES:
            return 0
        share = self._lost / self._sent
        index = (self._lost_lost - 2 * share * self._lost_sent + share * share * self._sent_sent) / self._lost
        deviation = math.sqrt((2 + self._updates / self._lost) / self._updates)
        if index < 1 + CERTAIN * deviation:
            return 0
        burst_ns = (1 + index) / 2 * self._seconds / self._sent * 1e9
        return int(min(SPACING_MOST_NS, max(SPACING_LEAST_NS, SPACING_BURSTS * burst_ns)))

    def _follow(self, needed: int, now: int) -> None:
        if needed >= self.spacing_ns:
            self.spacing_ns, self._needed_at, self._needed_since = needed, now, 0
            return
        self._needed_since = max(self._needed_since, needed)
        if now - self._needed_at > FORGET_NS:
            self.spacing_ns, self._needed_at, self._needed_since = self._needed_since, now, 0
