"""Whether the program of the other end stands still, while its kernel acknowledges what it gets. Pure.

An end that has sent something, and hears nothing from the other program, asks it: the answer is a keepalive. The time
of an answer begins when the kernel of the other end has the question. So a long queue on the way is no standstill.

    update      what the connections to the other end have sent and heard
    wants       whether it is time for a question
    ask         the question goes out now, on each connection
    demand      the other end has to be heard since this time: it counts as standing still until then
    is_silent   the verdict

One connection that hears something is enough. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MS = 1_000_000
ASK_NS = 400 * MS  # without a word from the other program, after something was sent
WRITTEN_NS = 200 * MS  # the outbound duty has written a question by then
ANSWER_NS = 1300 * MS  # the other program may take so long for an answer, or ROUND_TRIPS
ROUND_TRIPS = 3
US = 1_000


class Arrival(NamedTuple):
    """The kernel's word about a connection. Without any, all has arrived."""

    written: int = 0  # bytes that it has got from us
    arrived: int = 0  # bytes of them that the other end's kernel has
    rtt_us: int = 0  # smoothed


class Spoken(NamedTuple):
    """A connection to an end that answers questions."""

    sent: int  # when we sent anything last
    heard: int  # when anything came last
    arrival: Arrival = Arrival()


class Standstill:
    """The connections to one other end, by any key."""

    def __init__(self) -> None:
        self._heard = 0  # when anything came last, on any
        self._waiting = 0  # since when something is sent, and nothing has come; 0: nothing was sent
        self._asked = 0  # when a question went out that is not answered; 0: there is none
        self._marks: dict[int, int] = {}  # by connection: the bytes with which the question is at the other end
        self._arrived = 0  # when it was there
        self._limit = ANSWER_NS
        self._demanded = 0

    @property
    def is_asked(self) -> bool:
        """Whether `update` needs the kernel's word."""
        return bool(self._asked)

    def update(self, connections: Mapping[int, Spoken], now: int) -> None:
        self._heard = max((each.heard for each in connections.values()), default=now)
        if max((each.sent for each in connections.values()), default=0) <= self._heard:
            self._waiting = 0
        elif self._waiting <= self._heard:
            self._waiting = now
        if self._heard > self._asked:
            self._asked = self._arrived = 0
            self._marks.clear()
        elif not self._arrived and now - self._asked >= WRITTEN_NS:
            self._look_for_question(connections, now)

    def _look_for_question(self, connections: Mapping[int, Spoken], now: int) -> None:
        for key, each in connections.items():
            if each.arrival.arrived >= self._marks.setdefault(key, each.arrival.written):
                self._arrived = now
                self._limit = max(ANSWER_NS, ROUND_TRIPS * each.arrival.rtt_us * US)

    def wants(self, now: int) -> bool:
        return bool(self._waiting) and not self._asked and now - self._waiting >= ASK_NS

    def ask(self, now: int) -> None:
        self._asked = now

    def demand(self, since: int) -> None:
        """0: nothing is demanded. A connection that was made later is an answer."""
        self._demanded = since

    def is_silent(self, now: int) -> bool:
        if self._demanded and self._heard <= self._demanded:
            return True
        return bool(self._arrived) and now - self._arrived >= self._limit
