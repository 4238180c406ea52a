"""How much each uplink of a client carries, so that bulk is shared out by it. Pure.

An uplink that has more than it can send shows its rate: what is delivered on it. One that has less shows that it can
carry that much, and perhaps more. So while another uplink is full, its rate is taken to be higher with each update,
until it is full as well:

    full        unsent bytes wait in the kernel          the rate follows what is delivered
    not full    while another one is full                the rate grows, up to MORE_MOST times what is delivered
                while none is                            the rate is what it was, or what is delivered if that is more

A rate is never below a small share of all, or nothing would show that the uplink carries again. Rates are in bytes a
second, times in ns.

An uplink whose way is much longer than the shortest one carries no bulk while a shorter one works (`far`). The other
end would wait for its blocks longer than it waits for any, and each of them would be out of order inside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

UNKNOWN = 125_000.0  # an uplink that has not been measured: all are equal at first
FOLLOW = 0.4  # of the way to what was delivered, with each update
GROWTH = 1.2
MORE_MOST = 2.0
LEAST_SHARE = 0.02
FAR_NS = 120_000_000  # of a round trip: less than the other end waits there and back (pipeline.fec.reorder)
WINDOW = 3  # updates over which deliveries are averaged: acknowledgements come in bursts


def far(round_trips: Mapping[int, int]) -> set[int]:
    """The uplinks whose shortest round trip is longer by FAR_NS than that of another one; 0: not known."""
    known = {number: each for number, each in round_trips.items() if each}
    nearest = min(known.values(), default=0)
    return {number for number, each in known.items() if each > nearest + FAR_NS}


class PathSample(NamedTuple):
    """The kernel's numbers of one connection for bulk."""

    serial: int
    delivered: int  # bytes since its beginning
    unsent: int  # bytes that wait in the kernel


class PathRates:
    """`rates`: by the number of the uplink."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self._before: dict[int, int] = {}
        self._updated_at = 0
        self._windows: dict[int, deque[tuple[int, int, bool]]] = {}  # of an uplink: bytes, time, whether it was full

    def update(self, paths: Mapping[int, Sequence[PathSample]], now: int) -> dict[int, float]:
        """The rates, given the connections on each uplink."""
        passed = now - self._updated_at if self._updated_at else 0
        self._updated_at = now
        for number, samples in paths.items():
            window = self._windows.setdefault(number, deque(maxlen=WINDOW))
            delivered = sum(max(0, each.delivered - self._before.get(each.serial, each.delivered)) for each in samples)
            window.append((delivered, passed, any(each.unsent for each in samples)))
        self._before = {each.serial: each.delivered for samples in paths.values() for each in samples}
        full = {number for number in paths if 2 * sum(entry[2] for entry in self._windows[number]) > WINDOW}
        rates = {}
        for number in paths:
            window = self._windows[number]
            rate = sum(entry[0] for entry in window) * 1e9 / max(1, sum(entry[1] for entry in window))
            rates[number] = self._rate(self.rates.get(number, UNKNOWN), rate, number in full, bool(full))
        least = LEAST_SHARE * sum(rates.values())
        self.rates = {number: max(least, rate) for number, rate in rates.items()}
        return self.rates

    @staticmethod
    def _rate(before: float, delivered: float, is_full: bool, any_is_full: bool) -> float:
        if is_full:
            return before + FOLLOW * (delivered - before)
        if any_is_full:
            return max(delivered, min(GROWTH * before, max(before, MORE_MOST * delivered)))
        return max(before, delivered)
