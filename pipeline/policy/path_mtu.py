"""Which size of datagrams a path carries: the search of RFC 8899, by probes that the other end answers. Pure.

Sizes are bytes of UDP payload. Nothing but an answer makes a size good, and no error message makes one bad.

    base         BASE is tried until it is answered. Before that the path carries no datagram at all, and `size` is 0
    search       the greatest size first, as most paths carry it; then the middle between the greatest good size and the
                 least bad one, until they are less than STEP apart. A size is bad after MAX_PROBES without an answer
    complete     nothing is tried for RAISE_NS. Then the search begins again above the present size
    doubted      segments of the present size have stopped to arrive: `size` is BASE at once. The present size is tried
                 first, so a path that has only lost a few has it back after a round trip. If it is bad, the path has
                 become narrower (a black hole), and the search goes on below it

An ICMP "too big" may be forged, and may name any size. It says which size to try first, in the search or after a doubt.
It changes neither `size` nor the time of a probe. The own interface forges nothing: what it refuses is bad at once.

    due           the size of the probe that goes out now; 0: none
    answered      a probe has come back
    doubt         segments are outstanding, and none has been reported for too long (pipeline.policy.carrier)
    too_big       a router says so
    refused       the own interface says so of the latest probe

Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

BASE = 1200  # RFC 8899, 5.1.2: the recommended BASE_PLPMTU; RFC 9000, 14: a path with less carries no QUIC either
MAX_PROBES = 3  # RFC 8899, 5.1.2
PROBE_NS = 1_000_000_000  # RFC 8899, 5.1.1: no less than a second; 15 s are for transports without a round trip time
ROUND_TRIPS = 3
RAISE_NS = 600_000_000_000  # RFC 8899, 5.1.1: PMTU_RAISE_TIMER
BASE_NS = 10_000_000_000  # between two probes of BASE, once MAX_PROBES of them have gone unanswered
STEP = 16
"""Bytes: less than a further probe is worth. From 1200 to 1472, that is five sizes at most."""
OVERHEAD = {4: 28, 6: 48}
"""Bytes of the IP and UDP headers, by the version of IP: an interface's MTU is the greatest size and so many more."""


class PathMtu:
    """`most`: the greatest size that the interface carries. `size`: that segments may have; 0: no segment may go."""

    def __init__(self, most: int) -> None:
        self.size = 0
        self._most = max(BASE, most)
        self._bad = self._most + 1  # the least size that is known to be bad
        self._tried = BASE  # the size of the latest probes; 0: the search is complete
        self._failed = 0  # probes of this size that went unanswered, or may be yet
        self._next_at = 0
        self._hint = 0

    def due(self, now: int, rtt_ns: int = 0) -> int:
        """The caller sends the probe. `rtt_ns`: smoothed, 0 if it is not known."""
        if now < self._next_at:
            return 0
        if not self._tried:
            self._bad = self._most + 1
            self._try(self._middle_or_most(), now)
        elif self._failed >= MAX_PROBES and self.size:
            self._bad = self._tried
            self._try(self._middle(), now)
        if not self._tried:
            return 0
        self._failed += 1
        gone = not self.size and self._failed > MAX_PROBES
        self._next_at = now + (BASE_NS if gone else max(PROBE_NS, ROUND_TRIPS * rtt_ns))
        return self._tried

    def answered(self, size: int, now: int) -> None:
        """A probe of this size has come. Late answers count: what has come, comes."""
        if not BASE <= size <= self._most:
            return
        if size >= self._bad:
            self._bad = self._most + 1
        if size > self.size:
            self.size = size
        if self._tried <= self.size:
            self._try(self._middle_or_most(), now)

    def doubt(self, now: int) -> None:
        """Nothing of the present size arrives. That may have other reasons, so it is tried again before all others."""
        if self.size > BASE:
            doubted, self.size = self.size, BASE
            self._try(self._hint if BASE < self._hint < doubted else doubted, now)

    def too_big(self, size: int) -> None:
        """A router says that `size` is the greatest one that it passes on: UDP payload, the headers left out."""
        self._hint = size
        if BASE <= self.size < size < self._tried:
            self._tried, self._failed = size, 0

    def refused(self, now: int) -> None:
        """The interface carries no datagram of the size that due() gave last."""
        if self._tried > BASE:
            self._failed = MAX_PROBES
            self._next_at = now

    def _try(self, size: int, now: int) -> None:
        self._tried, self._failed = size, 0
        self._next_at = now if size else now + RAISE_NS

    def _middle_or_most(self) -> int:
        """The next size to try: the greatest, where it is not known to be bad."""
        return self._most if self.size < self._most < self._bad else self._middle()

    def _middle(self) -> int:
        middle = (self.size + self._bad) // 2
        return middle if self._bad - self.size > STEP and self.size < middle else 0
