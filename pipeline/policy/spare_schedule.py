"""When a spare is started: a process that waits to take the place of a worker that dies.

    calm       Its start takes a tenth of a second of a core. So it waits until the instance has run undisturbed for
               CALM_NS; it takes nothing from a worker that has just come back, and nothing at all in a storm of deaths.
    one        One spare is started at a time.
    backoff    A kind whose spare has died waits longer and longer.

A spare that an operator's command needs is started at once, by that command.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.policy.backoff import Backoff

CALM_NS = 2_000_000_000
BACKOFF_MIN, BACKOFF_MAX = 2.0, 120.0  # seconds


class SpareSchedule:
    """Times are CLOCK_MONOTONIC ns."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._disturbed_ns: int | None = None
        self._backoffs = {kind: Backoff(BACKOFF_MIN, BACKOFF_MAX) for kind in kinds}
        self._due_ns = dict.fromkeys(self._backoffs, 0)

    def next_due(self, present: Iterable[str], importing: bool, calm: bool, now: int) -> str | None:
        """The kind that gets a spare now. `importing`: a spare is under way. `calm`: every worker runs."""
        if not calm or self._disturbed_ns is None:
            self._disturbed_ns = now
        if importing or now - self._disturbed_ns < CALM_NS:
            return None
        missing = (kind for kind in self._due_ns if kind not in present and self._due_ns[kind] <= now)
        return next(missing, None)

    def failed(self, kind: str, now: int) -> None:
        """The spare of this kind has died, or could not be started."""
        self._due_ns[kind] = now + int(self._backoffs[kind].next_delay() * 1e9)

    def succeeded(self, kind: str) -> None:
        """The spare of this kind has become a worker."""
        self._backoffs[kind].reset()
