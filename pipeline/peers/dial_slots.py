"""The connections of one session, by the client's dial slot: how many there are, and which one a new one replaces.

    has_room    whether the limit lets a connection of this slot in; one that replaces another is not one more
    take        the slot is the new connection's; the place of the connection that it replaces, if there was one

The supervisor decides about the connections of all tcp workers, one after the other, and counts what it has admitted.
So a limit holds however many connections come at once, at however many workers. A connection whose client has changed
its address may stand for as long as `timeout`, at another worker: the client dials the slot again, and replaces it.

Nobody tells when a connection ends. If the limit seems to be reached, the status rows of the peer table say which
connections are still there. One that was admitted a moment ago need not show in them yet.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

UNSEEN_NS = 2_000_000_000
"""Time in which the connection of an admitted client shows in the peer table."""


class Place(NamedTuple):
    """A connection as the supervisor can name it."""

    lane: int  # of the tcp worker that has it
    serial: int  # among the connections of that worker


class _Taken(NamedTuple):
    place: Place
    since_ns: int


class DialSlots:
    """`seen`, where asked for, gives the places that the peer table shows for this session."""

    def __init__(self) -> None:
        self._taken: dict[int, _Taken] = {}

    def has_room(self, index: int, most: int, count: int, seen: Callable[[], Container[Place]], now: int) -> bool:
        """Whether fewer than `most` slots besides this one are taken. `count`: established connections; only if they
        are fewer than the slots that are taken, some may be free."""
        if self._others(index) >= most and count < len(self._taken):
            there = seen()
            self._taken = {
                each: taken
                for each, taken in self._taken.items()
                if taken.place in there or now - taken.since_ns < UNSEEN_NS
            }
        return self._others(index) < most

    def take(self, index: int, place: Place, now: int) -> Place | None:
        """Serial numbers begin anew with each generation of a worker: an earlier holder of this one is gone."""
        self._taken = {each: taken for each, taken in self._taken.items() if taken.place != place}
        before = self._taken.get(index)
        self._taken[index] = _Taken(place, now)
        return before.place if before else None

    def _others(self, index: int) -> int:
        return len(self._taken) - (index in self._taken)
