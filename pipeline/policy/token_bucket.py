"""The limit on what a peer sends or receives: a token bucket that may be overdrawn.

    take(size, now)   so many bytes went through. Whoever reads a socket learns their number when they are there, so
                      nothing is refused; what is beyond the bucket is a debt
    ready(now)        no debt is left: read and write
    due()             when that will be so

Who takes only when ready has, over any time t, at most burst + rate * t and the last take through; and rate * t at
least if it always has something. Counted in integers, so nothing is lost or won by rounding, however small the takes
are. With rate 0 there is no limit. Another rate is another Bucket.
"""

from __future__ import annotations

SECOND = 1_000_000_000
BURST_NS = 50_000_000  # a worker that comes so much too late has lost nothing of the rate
BURST_LEAST = 2 * 131072  # bytes: two full blocks (wire.BLOCK_PAYLOAD_MAX), as takes are of up to one


class TokenBucket:
    """Full at first. Times are CLOCK_MONOTONIC ns; `burst` 0 stands for BURST_NS of the rate, at least BURST_LEAST."""

    def __init__(self, rate_bytes_per_s: int, burst_bytes: int = 0) -> None:
        self.rate = rate_bytes_per_s
        burst = burst_bytes or max(BURST_LEAST, rate_bytes_per_s * BURST_NS // SECOND)
        # in bytes times ns per second: what a rate of 1 adds in 1 ns
        self._burst = burst * SECOND
        self._level = self._burst
        self._at = 0

    def take(self, size: int, now: int) -> None:
        if self.rate:
            self._level = min(self._burst, self._level + self.rate * (now - self._at)) - size * SECOND
            self._at = now

    def ready(self, now: int) -> bool:
        return self._level + self.rate * (now - self._at) >= 0

    def due(self) -> int:
        """Time from which on it is ready; one in the past if it is."""
        return self._at - self._level // self.rate if self.rate else 0
