"""How long a NAT keeps an idle way for datagrams open, found out by answers that are asked for later. Pure.

A probe cannot tell whether the way was open before it: as it passes, the NAT opens the way again, often with the port
of before. An answer can. So the probe says how long the other end shall wait with it (pipeline.wire.control_datagram).
If nothing else goes out meanwhile, an answer proves that the NAT keeps an idle way open for so long.

    answered       the next probe goes out at once, for it keeps the way open. It asks for the next of STEPS_S
    missing        the way is shut, or the answer was lost. The next probe goes out at once and opens it; STEPS_S begin
                   anew, and end below the time that has failed, for HOLD_NS. That doubles if it fails again
    other traffic  keeps the way open, so the answer proves nothing. The next probe goes out once nothing has been sent
                   for the longest time that is proved

While no answer is missing, one probe goes out in each `idle_s` at most, and none under load. If the way is shut too
soon, blocks for this end go by TCP until the next probe: pipeline.policy.carrier.

    due         the seconds after which the other end shall answer the probe that goes out now; 0: none goes out
    sent        something else goes out
    answered    such an answer has come

Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

STEPS_S = (15, 20, 30, 45, 60, 90, 120)
"""From the shortest interval that RFC 8085, 3.5, allows, to the least that RFC 4787, REQ-5, demands of a NAT. Many keep
UDP for 30 s (RFC 9000, 10.1.2)."""

SECOND = 1_000_000_000
LATE_NS = SECOND  # an answer may come so much after its time, or ROUND_TRIPS
ROUND_TRIPS = 3
HOLD_NS = 3_600_000_000_000  # a shut way costs a detour, and a new NAT comes with a new address: an hour, by choice
HOLD_MOST_NS = 24 * HOLD_NS


class NatKeepalive:
    """One way: from a socket of a client to a server. `idle_s`: the longest time that is proved."""

    def __init__(self) -> None:
        self.idle_s = 0
        self._step = 0
        self._asked_at: int | None = None  # when the probe went out whose answer is waited for
        self._sent_at = 0  # when anything went out last
        self._is_idle = False  # nothing but that probe has gone out
        self._next_at = 0
        self._failed = len(STEPS_S)  # the step that has failed, and all above it: not to be tried
        self._failed_last = 0
        self._hold_ns = HOLD_NS
        self._hold_until = 0

    def due(self, now: int, rtt_ns: int = 0) -> int:
        """The caller sends the probe, and does not call sent() for it."""
        if self._asked_at is not None:
            if now < self._asked_at + self._wait_ns() + max(LATE_NS, ROUND_TRIPS * rtt_ns):
                return 0
            self._miss(now)
        if now < self._next_at:
            return 0
        self._asked_at = self._sent_at = now
        self._is_idle = True
        return STEPS_S[self._step]

    def sent(self, now: int) -> None:
        self._sent_at = now
        self._is_idle = False
        if self._asked_at is None:
            self._next_at = self._quiet_until()

    def answered(self, wait_s: int, now: int) -> None:
        """An answer to a probe that has asked for so many seconds. One of an earlier probe proves nothing more."""
        if self._asked_at is None or wait_s != STEPS_S[self._step] or now < self._asked_at + self._wait_ns():
            return
        self._asked_at = None
        if not self._is_idle:
            self._next_at = self._quiet_until()
            return
        self.idle_s = wait_s
        self._next_at = now
        if now >= self._hold_until:
            self._failed = len(STEPS_S)
        self._step = min(self._step + 1, self._failed - 1)

    def _miss(self, now: int) -> None:
        self._asked_at = None
        if not self._is_idle:
            self._next_at = self._quiet_until()
            return
        if self._step:
            again = self._step == self._failed_last
            self._hold_ns = min(2 * self._hold_ns, HOLD_MOST_NS) if again else HOLD_NS
            self._failed = self._failed_last = self._step
            self._hold_until = now + self._hold_ns
        self._step = self.idle_s = 0
        self._next_at = now

    def _wait_ns(self) -> int:
        return STEPS_S[self._step] * SECOND

    def _quiet_until(self) -> int:
        return self._sent_at + (self.idle_s or STEPS_S[0]) * SECOND
