"""The limit on packets to everybody: how much each sender, and all of them together, may send to all peers of a hub.

Each such packet goes out once for each peer. So without a limit one peer would make a hundred times its own traffic,
and the work of that. A packet counts for PACKET_BYTES_LEAST at least, since small ones cost as much as large ones.
"""

from __future__ import annotations

from pipeline.policy.token_bucket import TokenBucket

PACKET_BYTES_LEAST = 256

BURST_BYTES = 32768
"""Bytes that a sender may send at once: the questions and answers of mDNS as a machine starts."""

SENDERS_AT_ONCE = 4
"""All senders together have the limit of so many."""

SENDERS_MAX = 4096
"""Senders that are known at a time; when there are more, all of them begin anew."""


class MulticastLimit:
    """`rate`: bytes a second of each sender. A sender is any number, such as a peer handle."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._all = TokenBucket(SENDERS_AT_ONCE * rate, SENDERS_AT_ONCE * BURST_BYTES)
        self._senders: dict[int, TokenBucket] = {}

    def may_pass(self, sender: int, size: int, now: int) -> bool:
        """Whether a packet of so many bytes may go to everybody; if so, it counts. `now`: CLOCK_MONOTONIC ns."""
        own = self._senders.get(sender)
        if own is None:
            if len(self._senders) >= SENDERS_MAX:
                self._senders.clear()
            own = self._senders[sender] = TokenBucket(self._rate, BURST_BYTES)
        if not (own.in_credit(now) and self._all.in_credit(now)):
            return False
        for bucket in (own, self._all):
            bucket.spend(max(size, PACKET_BYTES_LEAST), now)
        return True
