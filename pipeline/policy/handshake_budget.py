"""The time that a tcp worker may spend on clients that have not proved who they are, beside the traffic of its peers.

    observe(byte_count, now)    call often: so many bytes have passed the worker's connections so far
    allowance(now)              ns that may be spent now; 0: not yet, ask again
    spend(ns)                   so much was spent
    give_back(ns)               of it, so much was spent on a client that has now proved to be a peer

While peers have traffic, unauthenticated clients together have a SHARE of the time, and an account of BURST_NS at
most. Traffic is TRAFFIC_BYTES within WINDOW_NS, and the BUSY_NS after it. Without traffic they have all of the time, in
turns of TURN_NS, so that a single packet hardly waits. A handshake that succeeds costs the account nothing, unless its
peer connects again and again. So peers that come back all at once are not held up by each other's traffic.
"""

from __future__ import annotations

SHARE = 10  # a tenth
TURN_NS = 1_000_000  # how long a packet of a peer may have to wait for handshakes: about three of them
BURST_NS = 20_000_000
WINDOW_NS = 50_000_000
TRAFFIC_BYTES = 62_500  # in a window: 10 Mbit/s
BUSY_NS = 1_000_000_000  # a flow that pauses for less goes on


class HandshakeBudget:
    """One of a tcp worker. Times are CLOCK_MONOTONIC ns."""

    def __init__(self) -> None:
        self._account_ns = BURST_NS
        self._account_at = 0
        self._byte_count = 0
        self._window_ends = 0
        self._busy_until = 0

    def observe(self, byte_count: int, now: int) -> int:
        """The total number of bytes that have been received and sent. When to tell it again."""
        if now >= self._window_ends:
            if byte_count - self._byte_count >= TRAFFIC_BYTES:
                self._busy_until = now + BUSY_NS
            self._byte_count = byte_count
            self._window_ends = now + WINDOW_NS
        return self._window_ends

    def allowance(self, now: int) -> int:
        """The time that may be spent now, at most TURN_NS; 0 while the account has less than that."""
        if now >= self._busy_until:
            self._account_ns = BURST_NS
        else:
            self._account_ns = min(BURST_NS, self._account_ns + (now - self._account_at) // SHARE)
        self._account_at = now
        return TURN_NS if self._account_ns >= TURN_NS else 0

    def spend(self, ns: int) -> None:
        self._account_ns -= ns

    def give_back(self, ns: int) -> None:
        self._account_ns += ns
