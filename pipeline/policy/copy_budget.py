"""The budget for copies of light packets while the path seems to lose nothing, so that its first loss delays none.

It grows by SHARE of all bytes sent to the peer, by FLOOR at least and by MOST at most. The rest is kept, up to
SAVED_BYTES. A budget that is used up pays for nothing until RESUME_BYTES of that are there again, and then only after a
pause of PAUSE_NS. So a flow beyond it is not copied now and then: a copy that comes first, on another connection, would
overtake the packets before it that have none.

Copies that other workers have made for the same peer are paid out of it, too.
"""

from __future__ import annotations

SHARE = 100  # one byte of so many
FLOOR = 8_000  # bytes a second: 64 kbit/s, fifty small packets
MOST = 125_000  # bytes a second: each copy takes time as well, of both ends
SAVED_BYTES = 32_000  # the first flow of a session is copied whole for some seconds
RESUME_BYTES = SAVED_BYTES // 4
PAUSE_NS = 5_000_000  # packets before it are on their way: several workers may read the connections at the other end
REFILL_NS = 100_000_000  # between two looks at what was sent

SEGMENT_BYTES = 80
"""The cost of a copy beside its own bytes: record, TCP and IP headers."""


class CopyBudget:
    """That of one peer, in one worker. Full at first."""

    __slots__ = ("_elsewhere", "_left", "_sent", "_unpaid_at", "_used_up", "refilled_at")  # a hub has thousands

    def __init__(self, sent: int, elsewhere: int, now: int) -> None:
        self._sent = sent
        self._elsewhere = elsewhere
        self.refilled_at = now
        self._left = float(SAVED_BYTES)
        self._used_up = False
        self._unpaid_at = now  # when it has last paid for nothing

    def is_due(self, now: int) -> bool:
        return now - self.refilled_at >= REFILL_NS

    def refill(self, sent: int, elsewhere: int, now: int) -> None:
        """`sent`: bytes sent to the peer so far; `elsewhere`: what other workers have paid so far."""
        seconds = (now - self.refilled_at) / 1e9
        grown = max(FLOOR * seconds, min((sent - self._sent) / SHARE, MOST * seconds))
        self._left = min(self._left + grown - (elsewhere - self._elsewhere), SAVED_BYTES)
        self._sent, self._elsewhere, self.refilled_at = sent, elsewhere, now

    def pay(self, size: int, now: int) -> int:
        """The cost of a copy of so many bytes, if it is paid for; else 0."""
        cost = size + SEGMENT_BYTES
        if self._used_up and self._left >= RESUME_BYTES and now - self._unpaid_at >= PAUSE_NS:
            self._used_up = False
        if self._used_up or self._left < cost:
            self._used_up = True
            self._unpaid_at = now
            return 0
        self._left -= cost
        return cost
