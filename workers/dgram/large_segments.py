"""Whether none of the large segments of a path arrives while small ones do: the path has become narrower under load.

Small segments keep such a path from going dark, and probes have BASE bytes. Rows of bulk would be sent again for ever.
A report says how many segments are missing of those that have passed. If that is as many as there were large ones, all
of these are lost, and their size is in doubt. A doubt that was wrong costs a round trip with small segments.

Pure; owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.policy.path_mtu import BASE
from workers.dgram.sent_log import SentLog

LOST_LEAST = 8  # segments: at 20 % of losses chance takes so many once in 400 000 times
LOST_NS = 100_000_000
"""From the first of them. Else segments that others have overtaken would look lost."""


class LargeSegments:
    """`before`: the last sequence that was sent before."""

    def __init__(self, now: int, before: int) -> None:
        self._log = SentLog(now, before)
        self._sent = self._passed = 0
        self._lost = 0
        self._lost_since = 0

    def on_sent(self, highest: int, count: int, size: int, now: int) -> None:
        """A burst of so many segments with so many bytes in all."""
        if size > count * BASE:
            self._sent += count
        self._log.add(highest, self._sent, now)

    def take(self, highest: int, missing: int, now: int) -> bool:
        """A report speaks of segments up to `highest`, of which so many are missing since the one before. True if their
        size is in doubt."""
        passed = self._log.pass_by(highest)
        large, self._passed = passed - self._passed, passed
        if not large:
            return False
        if missing < large:
            self._lost = 0
            return False
        if not self._lost:
            self._lost_since = now
        self._lost += large
        if self._lost < LOST_LEAST or now - self._lost_since < LOST_NS:
            return False
        self._lost = 0
        return True
