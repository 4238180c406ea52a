"""Which clients of a hub get a direct path to each other, and when (docs/direct.md). Pure.

    why_relayed(one, two)     why two sessions stay with the hub; "" if they may be a pair
    Demand                    pairs between which packets pass, as looks at the tun workers show it
    Attempts                  when a pair is tried again that has ended

Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple

SECOND = 1_000_000_000

PARTNERS_MAX = 7
"""Of a client. Each costs it a place in all tables of peers, and the hub two notes."""

LOOKS, LOOKS_NS = 3, 10 * SECOND
"""A pair is wanted that shows in so many looks within that time. A ping each second does, one packet does not."""

SEEN_MOST = 1024  # pairs that are counted at a time
ATTEMPTS_MOST = 4096  # pairs that are remembered

RETRY_NS, RETRY_MOST_NS = 30 * SECOND, 3600 * SECOND
STEADY_NS = 60 * SECOND
AGAIN_NS = 2 * SECOND
"""A pair that was open for STEADY_NS and has ended is tried again after AGAIN_NS: one of them is in another network."""

ISOLATED = "the hub isolates its clients"
TAKES_NONE = '{} has `direct` "off", or is older'
NO_PATH = "no datagram of {} reaches the hub"
HAS_RULES = "{} has rules of reach, which the hub keeps"
HAS_RATE = "{} has a rate or a quota, which the hub keeps"
OVERLAPS = "networks of {} are too many, or overlap those of another peer"
HAS_MANY = "{} has " + str(PARTNERS_MAX) + " direct paths already"


class Facts(NamedTuple):
    """Of a session that may be one of a pair."""

    name: str
    takes_notes: bool
    has_path: bool  # of datagrams, with the hub
    has_rules: bool
    has_rate: bool
    is_told_apart: bool  # its networks are few, and no other peer's
    partners: int = 0  # that it has beside this one


_HINDRANCES = (
    (TAKES_NONE, lambda each: not each.takes_notes),
    (HAS_RATE, lambda each: each.has_rate),
    (HAS_RULES, lambda each: each.has_rules),
    (NO_PATH, lambda each: not each.has_path),
    (OVERLAPS, lambda each: not each.is_told_apart),
    (HAS_MANY, lambda each: each.partners >= PARTNERS_MAX),
)


def why_relayed(one: Facts, two: Facts) -> str:
    for reason, hinders in _HINDRANCES:
        for each in (one, two):
            if hinders(each):
                return reason.format(each.name)
    return ""


Key = tuple[int, int]
"""Two sessions, by their peer handles, the lower one first."""


def key_of(one: int, two: int) -> Key:
    return (one, two) if one < two else (two, one)


class Demand:
    """The latest looks in which each pair has shown."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Key, deque[int]] = OrderedDict()  # the pair that has shown last is the last

    def look(self, seen: Iterable[Key], now: int) -> list[Key]:
        """`seen`: the pairs between which packets have passed since the last look. Those that are wanted now."""
        wanted = []
        for key in set(seen):
            times = self._seen.pop(key, None) or deque(maxlen=LOOKS)
            times.append(now)
            self._seen[key] = times
            if len(times) == LOOKS and now - times[0] <= LOOKS_NS:
                wanted.append(key)
        while self._seen and (len(self._seen) > SEEN_MOST or now - next(iter(self._seen.values()))[-1] > LOOKS_NS):
            self._seen.popitem(last=False)
        return wanted


class _Attempt(NamedTuple):
    not_before: int
    pause_ns: int


Names = frozenset[str]


class Attempts:
    """By the names of two peers: sessions come and go."""

    def __init__(self) -> None:
        self._known: OrderedDict[Names, _Attempt] = OrderedDict()

    def may_try(self, names: Names, now: int) -> bool:
        found = self._known.get(names)
        return found is None or now >= found.not_before

    def ended(self, names: Names, open_ns: int, now: int) -> None:
        """A pair of these has ended, which was open for so long."""
        before = self._known.pop(names, None)
        if open_ns >= STEADY_NS:
            pause, until = RETRY_NS // 2, now + AGAIN_NS
        else:
            pause = min(RETRY_MOST_NS, 2 * before.pause_ns if before is not None else RETRY_NS)
            until = now + pause
        self._known[names] = _Attempt(until, pause)
        while len(self._known) > ATTEMPTS_MOST:
            self._known.popitem(last=False)
