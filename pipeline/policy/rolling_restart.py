"""A rolling restart: workers are replaced one after the other, with the program that is on disk now.

    prepare    A new process of the worker's kind is started, and has imported everything. If it cannot, nothing has
               been lost.
    replace    The old process drains and ends; the new one takes its place.
    settle     The instance runs again, and has done so for SETTLE_NS. Then it is the turn of the next worker.

It gives up when a step takes too long: the workers that are left keep their old program.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

SETTLE_NS = 1_000_000_000  # a worker that dies younger has not worked: policy.restart


class Prepare(NamedTuple):
    """Start a spare of this kind, unless there is one."""

    kind: str


class Replace(NamedTuple):
    """Replace this worker; there is a spare."""

    worker: str


class GiveUp(NamedTuple):
    """The rest is not replaced."""

    reason: str


class RollingRestart:
    """Over (name, kind) of the workers, in this order. `limit_ns`: for a step. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, workers: Iterable[tuple[str, str]], limit_ns: int, now: int) -> None:
        self.left = list(workers)
        self._limit_ns = limit_ns
        self._since_ns = now  # of the step
        self._runs_since_ns: int | None = now - SETTLE_NS
        self._replaced = ""

    def step(self, is_running: bool, has_spare: bool, now: int) -> Prepare | Replace | GiveUp | None:
        """The next action. `is_running`: every worker runs. `has_spare`: one of the kind of `left[0]` waits."""
        if not self.left:
            return None
        name, kind = self.left[0]
        if not is_running:
            self._runs_since_ns = None
            if now - self._since_ns > self._limit_ns:
                return GiveUp(f"the instance does not run after {self._replaced or 'a worker'} was replaced")
            return None
        if self._runs_since_ns is None:
            self._runs_since_ns = now
        if now - self._runs_since_ns < SETTLE_NS:
            return None
        if self._replaced == name:  # it is back, and works
            self.left.pop(0)
            self._replaced = ""
            self._since_ns = now
            return None
        if has_spare:
            self._replaced = name
            self._since_ns = now
            self._runs_since_ns = None
            return Replace(name)
        if now - self._since_ns > self._limit_ns:
            return GiveUp(f"a new process of kind {kind} is not ready in time")
        return Prepare(kind)
