"""Time in which this process did not run, told by looks at the clock that should be frequent.

A process is stopped and goes on (docker pause, the cgroup freezer, a live migration, extreme load): CLOCK_MONOTONIC has
gone on. Others seem to have been silent meanwhile, but nobody has looked. The time between two looks counts for LOOK_NS
at most; the rest is missed, and is no part of any silence. A process whose looks are always late still notices every
silence, only later.

A machine is suspended: CLOCK_MONOTONIC stands still, and CLOCK_BOOTTIME goes on.
"""

from __future__ import annotations

LOOK_NS = 1_000_000_000
"""Far above the time between two looks (0.1 s), far below the silences that are measured (5 s and more)."""


class Pauses:
    """Times are ns."""

    def __init__(self) -> None:
        self._looked_at = 0
        self._ahead: int | None = None

    def missed(self, now: int) -> int:
        """How long we did not run since the last look; 0 in normal times. `now`: CLOCK_MONOTONIC."""
        since, self._looked_at = self._looked_at or now, now
        return max(0, now - since - LOOK_NS)

    def suspended(self, boottime: int, now: int) -> int:
        """How long the machine was suspended since the last call. `boottime` must be read first, `now` after it: if we
        are stopped between the two, the difference is too small and never too large."""
        ahead = boottime - now
        before = ahead if self._ahead is None else self._ahead
        self._ahead = max(ahead, before)
        return max(0, ahead - before)
