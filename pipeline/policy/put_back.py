"""How often something that others remove from the kernel is put back, before the contest is given up for a while.

A network manager that restarts removes once. A program that removes again and again would be at war with us for ever,
at the cost of both and of the traffic. So after PUT_BACK_MAX times within PERIOD_NS there is peace for REST_NS.
"""

from __future__ import annotations

from collections import deque

SECOND = 1_000_000_000  # ns
PUT_BACK_MAX = 5
PERIOD_NS = 60 * SECOND
REST_NS = 300 * SECOND
REST_TEXT = "5 minutes"


class PutBackLimit:
    def __init__(self) -> None:
        self._times: deque[int] = deque()
        self._rest_until = 0

    def may(self, now: int) -> bool:
        """Whether to put back now; that counts. After too many times it is False for a while."""
        if self.is_resting(now):
            return False
        while self._times and now - self._times[0] > PERIOD_NS:
            self._times.popleft()
        if len(self._times) >= PUT_BACK_MAX:
            self._times.clear()
            self._rest_until = now + REST_NS
            return False
        self._times.append(now)
        return True

    def is_resting(self, now: int) -> bool:
        return now < self._rest_until

    def rest_has_ended(self, now: int) -> bool:
        """True once, at the end of a rest."""
        ended = bool(self._rest_until) and now >= self._rest_until
        if ended:
            self._rest_until = 0
        return ended

    def reset(self) -> None:
        """An administrator has asked for it: begin anew."""
        self._times.clear()
        self._rest_until = 0
