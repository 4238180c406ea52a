"""Whether and when a dead worker is started again.

    died(name, status, lived, now) -> RestartAt(at_ns) | GiveUp(reason)

One bad worker must not keep a machine busy, and one bad moment must not end a tunnel:

    intensity, period   After more than `intensity` restarts of one worker within `period`: give up (the rule of OTP).
    backoff             A worker that had worked for a while is started again at once. A worker that dies young waits,
                        about twice as long each time.
    exit status 78      The configuration is wrong: another start cannot help. Give up.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pipeline.policy.backoff import Backoff

EX_CONFIG = 78  # sysexits.h
YOUNG_NS = 1_000_000_000  # a worker that dies younger than this, counted from its readiness, has not worked
BACKOFF_MIN, BACKOFF_MAX = 0.1, 5.0  # seconds


class RestartAt(NamedTuple):
    """Start the worker again at this time (CLOCK_MONOTONIC)."""

    at_ns: int


class GiveUp(NamedTuple):
    """Stop the instance: an operator has to find the cause."""

    reason: str


class RestartPolicy:
    """The restarts of every worker, of which up to `intensity` within `period` seconds are allowed."""

    def __init__(self, intensity: int, period: float) -> None:
        self._intensity = intensity
        self._period_ns = int(period * 1e9)
        self._restarts: dict[str, deque[int]] = {}
        self._backoffs: dict[str, Backoff] = {}

    def died(self, name: str, status: int, lived_ns: int, now: int) -> RestartAt | GiveUp:
        """`status`: exit status, negative for a signal. `lived_ns`: since the worker became ready, else 0."""
        if status == EX_CONFIG:
            return GiveUp(f"{name} refuses its configuration")
        times = self._restarts.setdefault(name, deque())
        while times and now - times[0] > self._period_ns:
            times.popleft()
        if len(times) >= self._intensity:
            return GiveUp(f"{name} has died {len(times) + 1} times in {self._period_ns / 1e9:g} s")
        times.append(now)
        backoff = self._backoffs.setdefault(name, Backoff(BACKOFF_MIN, BACKOFF_MAX))
        if lived_ns >= YOUNG_NS:
            backoff.reset()
            return RestartAt(now)
        return RestartAt(now + int(backoff.next_delay() * 1e9))
