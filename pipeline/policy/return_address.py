"""Where the datagrams for a peer go: to the newest address that it has proved, and no flood to any other. Pure.

A control datagram proves who sent it, and its count which of two is newer (pipeline.sealing.datagram_seal). Its source
address proves nothing: anybody on the path may send a copy from elsewhere first. An address is proved by the answer to
a challenge that went there. Segments, which no dgram worker can verify, never move an address.

    heard from            datagrams go
    the present address   there
    another port of the   there at once: a NAT has forgotten the port before. The host gets the bytes anyway, so no
    present host          other one can be flooded. The port is challenged; without an answer the one before comes back
    the address before    there at once, for KNOWN_NS: a peer between two networks
    another host          to the present address, until the new one is proved. Up to then it gets challenges alone, and
                          no more than AMPLIFICATION times the bytes that have come from it

Addresses change CHANGES times in CHANGES_NS at most. A later change waits for the next datagram from there. Times are
CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple

AMPLIFICATION = 3  # RFC 9000, 8.1
CHALLENGES = 3  # as MAX_PROBES of RFC 8899; at 10 % of losses each way, one of 150 addresses is refused at first
CHALLENGE_NS = 300_000_000  # between two of them, or ROUND_TRIPS: RFC 9002, 6.2.2, takes 333 ms for an unknown path
ROUND_TRIPS = 2
KNOWN_NS = 60_000_000_000  # the address may be another one's by then
CHANGES, CHANGES_NS = 5, 10_000_000_000
"""A phone between two networks changes a few times. A peer whose datagrams come from two addresses in turn would change
with each of them."""


class Address(NamedTuple):
    host: str
    port: int


class Change(Enum):
    """The part of the address that is new. With another host, nothing that is known of the path is of use."""

    NONE = "none"
    PORT = "port"
    HOST = "host"


class ReturnAddress:
    """Of one peer, as one lane hears it. `address`: where segments go; None: nowhere yet."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self._newest = -1
        self._before: Address | None = None  # the address before this one, which was proved
        self._left_at = 0  # when it was left
        self._asked: Address | None = None  # an address that is not proved; it may be the present one
        self._received = self._sent = 0  # bytes from and to it
        self._challenges = 0
        self._next_at = 0
        self._changes: deque[int] = deque(maxlen=CHANGES)

    def heard(self, source: Address, count: int, size: int, now: int) -> Change:
        """A control datagram of so many bytes has been opened."""
        if source == self._asked:
            self._received += size
        if count <= self._newest:
            return Change.NONE
        self._newest = count
        present = self.address
        if source == present:
            if self._asked != present:
                self._asked = None
            return Change.NONE
        if present and source == self._before and now - self._left_at < KNOWN_NS:
            return self._move(source, now)
        if present and source.host == present.host and self._asked != present:
            change = self._move(source, now)
            if change is not Change.NONE:
                self._ask(source, size, now)
            return change
        if source != self._asked:
            self._ask(source, size, now)
        return Change.NONE

    def challenge(self, size: int, now: int, rtt_ns: int = 0) -> Address | None:
        """The address to which a challenge of so many bytes goes now; None: none is due. The caller sends it."""
        if self._asked is None or now < self._next_at:
            return None
        if self._challenges == CHALLENGES:
            self._give_up(now)
            return None
        if self._asked != self.address and self._sent + size > AMPLIFICATION * self._received:
            return None
        self._challenges += 1
        self._sent += size
        self._next_at = now + max(CHALLENGE_NS, ROUND_TRIPS * rtt_ns)
        return self._asked

    def may_answer(self, source: Address, size: int) -> bool:
        """Whether a probe from there may be answered with so many bytes, which count as sent."""
        if source == self.address:
            return True
        if source != self._asked or self._sent + size > AMPLIFICATION * self._received:
            return False
        self._sent += size
        return True

    def proved(self, asked: Address, now: int) -> Change:
        """The challenge that went there has been answered, from wherever."""
        if asked != self._asked:
            return Change.NONE
        if asked == self.address:
            self._asked = None
            return Change.NONE
        return self._move(asked, now)

    def _ask(self, source: Address, size: int, now: int) -> None:
        self._asked = source
        self._received, self._sent = size, 0
        self._challenges = 0
        self._next_at = now

    def _move(self, to: Address, now: int) -> Change:
        if len(self._changes) == CHANGES and now - self._changes[0] < CHANGES_NS:
            return Change.NONE
        self._changes.append(now)
        left, self.address = self.address, to
        if left is not None:
            self._before, self._left_at = left, now
        self._asked = None
        return Change.PORT if left is not None and left.host == to.host else Change.HOST

    def _give_up(self, now: int) -> None:
        """No challenge has been answered. If datagrams go there already, they go where they went before."""
        if self._asked == self.address:
            self.address = self._before
        self._asked = None
