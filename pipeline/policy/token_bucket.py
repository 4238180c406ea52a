"""A token bucket that may be overdrawn: the limit on the bytes that a peer sends or receives.

    spend(size, now)   record that `size` bytes passed. A reader of a socket learns their number when they are there, so
                       the bucket refuses nothing; bytes beyond its level are a debt
    in_credit(now)     whether no debt is left, so that the caller may read or write
    credit_at()        the time at which that is so
    lends(now)         whether the debt is less than a burst, for callers that may overdraw it so far; lends_at()

Take a caller that spends only while the bucket is in credit. Over any time t it passes at most burst + rate * t and the
last amount spent. It passes at least rate * t if it always has something to pass. The bucket counts in integers:
rounding neither loses nor wins bytes, however small the amounts are. With rate 0 there is no limit.
"""

from __future__ import annotations

SECOND = 1_000_000_000
BURST_NS = 50_000_000  # a worker that comes so much too late has lost nothing of the rate
BURST_LEAST = 2 * 131072  # bytes: two full blocks (framing.BLOCK_PAYLOAD_MAX); a larger amount spent becomes a debt


class TokenBucket:
    """Full at first. Times are CLOCK_MONOTONIC ns; `burst` 0 stands for BURST_NS of the rate, at least BURST_LEAST."""

    def __init__(self, rate_bytes_per_s: int, burst_bytes: int = 0) -> None:
        self._refill(rate_bytes_per_s, burst_bytes)

    def _refill(self, rate: int, burst_bytes: int) -> None:
        self.rate = rate
        burst = burst_bytes or max(BURST_LEAST, rate * BURST_NS // SECOND)
        # in bytes times ns per second, the amount that a rate of 1 adds in 1 ns
        self._burst = burst * SECOND
        self._level = self._burst
        self._at = 0

    def spend(self, size: int, now: int) -> None:
        if self.rate:
            self._level = min(self._burst, self._level + self.rate * (now - self._at)) - size * SECOND
            self._at = now

    def in_credit(self, now: int) -> bool:
        return self._level + self.rate * (now - self._at) >= 0

    def credit_at(self) -> int:
        """The time from which on the bucket is in credit; one in the past if it is."""
        return self._at - self._level // self.rate if self.rate else 0

    def credit(self, now: int) -> int:
        """Bytes above a debt; 0 in debt."""
        return max(0, min(self._burst, self._level + self.rate * (now - self._at)) // SECOND)

    def lends(self, now: int) -> bool:
        return self._level + self._burst + self.rate * (now - self._at) >= 0

    def lends_at(self) -> int:
        """The time from which on the bucket lends; one in the past if it does."""
        return self._at - (self._level + self._burst) // self.rate if self.rate else 0


class SharedBucket(TokenBucket):
    """The limit of one peer, whose bytes pass several workers: each has a bucket and spends the others' bytes, too.

    Without a limit until the first update().
    """

    def __init__(self) -> None:
        super().__init__(0)
        self._elsewhere = 0

    def update(self, rate: int, elsewhere: int, now: int) -> None:
        """Set the peer's rate; `elsewhere` is the number of bytes that have passed the other workers so far.

        The first rate begins with a full bucket. A change of it keeps the debt, or the credit up to the new burst: else
        a rate that changes often would be no limit.
        """
        self.spend(elsewhere - self._elsewhere, now)
        if rate != self.rate:
            level = self._level if self.rate and rate else None
            self._refill(rate, 0)
            if level is not None:
                self._level, self._at = min(level, self._burst), now
        self._elsewhere = elsewhere
