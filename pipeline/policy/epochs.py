"""When a sender goes to the next epoch, and when a receiver forgets the one before. Pure.

A sender goes on once it has sealed enough, or for long enough. It waits until the other end has opened a block of the
present epoch, and then for a moment: so the other end has the key of the next one. RFC 9001, 6.1, has such a rule.
"""

from __future__ import annotations

EPOCH_BYTES = 1 << 36
"""Sent in an epoch, before the next one begins: a quarter of 2^38, near which AES-GCM's margin ends (RFC 8446, 5.5)."""

EPOCH_NS = 3_600_000_000_000
"""So long an epoch lasts at most, if anything has been sealed in it."""

EPOCH_NS_MIN = 10_000_000_000
"""And at least, from when it is acknowledged: the supervisor of the other end needs a moment to see each."""

KEEP_BEFORE_NS = 60_000_000_000
"""Blocks of the epoch before are opened for so long: TCP has repeated what was lost by then."""


class SendEpoch:
    """The present epoch of what this end seals. Times: CLOCK_MONOTONIC ns."""

    def __init__(self, now: int, sent_bytes: int) -> None:
        self._begin(now, sent_bytes)

    def _begin(self, now: int, sent_bytes: int) -> None:
        self._since_ns = now
        self._acknowledged_ns = 0  # since when; 0: it is not
        self._sent_bytes = sent_bytes

    def is_over(self, now: int, sent_bytes: int, acknowledged: bool) -> bool:
        """`sent_bytes`: all that were ever sent to the peer; `acknowledged`: it has opened a block of this epoch.

        If so, the next one begins.
        """
        if not acknowledged:
            return False
        self._acknowledged_ns = self._acknowledged_ns or now
        sent = sent_bytes - self._sent_bytes
        if now - self._acknowledged_ns < EPOCH_NS_MIN or (sent < EPOCH_BYTES and now - self._since_ns < EPOCH_NS):
            return False
        self._begin(now, sent_bytes)
        return True
