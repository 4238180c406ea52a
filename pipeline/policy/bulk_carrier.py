"""Whether the bulk for a peer goes by TCP although datagrams pass: they may be throttled where TCP is not. Pure.

Providers limit UDP to some Mbit/s, by dropping or by a queue. No datagram tells that from a slow path. So TCP is tried
where bulk is limited by datagrams that are slow, and what was sent in all tells which of the two carries more.

    datagrams -> trial    bulk was limited for LIMITED_NS, with less than SLOW sent in a second, and the last trial was
                          long ago. It is limited while some waits for the path, or much of it is lost
    trial -> datagrams    after TRIAL_NS, the first WARM_NS of which do not count. The next trial comes after twice as
                          long
    trial -> tcp          TCP has sent BETTER times as much
    tcp -> datagrams      after a hold. If bulk is limited then as much, a trial comes at once, and the next hold is
                          twice as long

So a path where TCP is no better pays for a trial of some seconds, less and less often. One where it is pays for some
seconds of slow datagrams. Light blocks are few, and stay with datagrams.

Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from enum import Enum

SECOND = 1_000_000_000
LIMITED_NS = 5 * SECOND
SLOW = 4_000_000
"""Bytes a second. By choice: few paths without a limit on UDP are slower, and those lose little by a trial."""
LIMITED = 0.7  # of the updates of late, so that bulk counts as limited
UPDATES = 10  # of late, about

WARM_NS = 1_500_000_000  # connections grow, and their buffers fill
TRIAL_NS = 3 * SECOND
BETTER = 1.5
TRIAL_HOLD_NS, TRIAL_HOLD_MOST_NS = 60 * SECOND, 3600 * SECOND
TCP_HOLD_NS, TCP_HOLD_MOST_NS = 60 * SECOND, 3600 * SECOND


class Phase(Enum):
    DATAGRAMS = 0
    TRIAL = 1
    TCP = 2


class BulkCarrier:
    """`rate`: what datagrams have carried before the trial, `rate_by_tcp`: TCP in it; bytes a second."""

    def __init__(self) -> None:
        self.phase = Phase.DATAGRAMS
        self.rate = self.rate_by_tcp = 0.0
        self._limited = 0.0
        self._from = 0, 0  # when what is measured began, and the bytes sent by then
        self._until = 0  # when the phase ends; of DATAGRAMS: when a trial may come
        self._trial_hold = self._tcp_hold = 0

    @property
    def is_by_tcp(self) -> bool:
        return self.phase is not Phase.DATAGRAMS

    def update(self, now: int, sent: int, is_limited: bool) -> bool:
        """Call it ten times a second; true if the phase has changed. `sent`: bytes to the peer, ever, by both
        carriers."""
        before = self.phase
        match before:
            case Phase.DATAGRAMS:
                self._look_for_limit(now, sent, is_limited)
            case Phase.TRIAL:
                self._try(now, sent)
            case Phase.TCP:
                if now >= self._until:
                    self._enter(Phase.DATAGRAMS, now, sent, now)
        return self.phase is not before

    def _look_for_limit(self, now: int, sent: int, is_limited: bool) -> None:
        self._limited += (is_limited - self._limited) / UPDATES
        began, sent_before = self._from
        if self._limited < LIMITED or not began:
            self._from = now, sent
        elif now - began >= LIMITED_NS:
            self.rate = (sent - sent_before) * SECOND / (now - began)
            if self.rate < SLOW and now >= self._until:
                self._enter(Phase.TRIAL, now, sent, now + TRIAL_NS)
            else:
                self._from = now, sent

    def _try(self, now: int, sent: int) -> None:
        began, sent_before = self._from
        left = self._until - now
        if left > TRIAL_NS - WARM_NS:
            self._from = now, sent
        elif left <= 0:
            self.rate_by_tcp = (sent - sent_before) * SECOND / max(1, now - began)
            if self.rate_by_tcp > BETTER * self.rate:
                self._trial_hold = 0
                self._tcp_hold = min(TCP_HOLD_MOST_NS, max(TCP_HOLD_NS, 2 * self._tcp_hold))
                self._enter(Phase.TCP, now, sent, now + self._tcp_hold)
            else:
                self._tcp_hold = 0
                self._trial_hold = min(TRIAL_HOLD_MOST_NS, max(TRIAL_HOLD_NS, 2 * self._trial_hold))
                self._enter(Phase.DATAGRAMS, now, sent, now + self._trial_hold)

    def _enter(self, phase: Phase, now: int, sent: int, until: int) -> None:
        self.phase, self._until, self._from, self._limited = phase, until, (now, sent), 0.0
