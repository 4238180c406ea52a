"""The network beneath a client's connections: what a change of it means for them. Pure.

    observe(...)    what the kernel says now: the way to each address of the server, and which local addresses are gone

    a local address is gone                   its connections are closed and dialed anew: nothing can be sent on them
    the way to the server's address changed   its connections are dialed anew, and closed when the new ones are there
    a way has appeared, or changed            every waiting dial is due at once
    the machine slept                         as if every way had changed

A client with several uplinks has one such object for each. Those that have lost their carrier need not wait for
another observation: lose(), and the other uplinks carry on.

A change counts once two observations in a row agree. Changes that follow each other closely are acted upon less and
less often, so a link that flaps costs a few dials. A source address that is merely no longer preferred (RFC 8981)
changes nothing: its connections work as long as the machine has it. Times are in ns.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

SLEPT_NS = 5_000_000_000  # of sleep, after which connections are not trusted any more
PAUSE_NS = 1_000_000_000  # between two actions, at first
PAUSE_MAX_NS = 4_000_000_000
CALM_NS = 30_000_000_000  # without an action, after which the pauses begin again

SOURCE_GONE = "this machine no longer has the address that it was dialed from"
WAY_CHANGED = "the way to the server has changed"
SLEPT = "this machine was asleep"


class Way(NamedTuple):
    """How packets to an address leave the machine."""

    device: int  # index of the interface
    gateway: bytes  # empty on a link
    running: bool  # the interface has a carrier


class Path(NamedTuple):
    """The path of one connection, as it was when the connection was dialed, or dialed anew for it."""

    destination: str  # address of the server
    source: str  # our own
    way: Way | None


@dataclass
class Changes:
    """The consequences of a change; the keys are those of the paths.

    The caller puts the present way into the paths that are renewed.
    """

    close: dict[int, str] = field(default_factory=dict)  # with the reason
    renew: dict[int, str] = field(default_factory=dict)  # with the reason
    hurry: bool = False  # the waiting dials are due

    def __bool__(self) -> bool:
        return bool(self.close or self.renew or self.hurry)


class Damper:
    """Lets an action pass at once, and those that follow it closely less and less often."""

    def __init__(self) -> None:
        self._next_at = 0
        self._pause = PAUSE_NS

    def is_open(self, now: int) -> bool:
        return now >= self._next_at

    def acted(self, now: int) -> None:
        self._pause = PAUSE_NS if now - self._next_at > CALM_NS else min(2 * self._pause, PAUSE_MAX_NS)
        self._next_at = now + self._pause


class Underlay:
    """`ways`: the settled way to each address of the server."""

    def __init__(self) -> None:
        self.ways: dict[str, Way | None] = {}
        self._seen: dict[str, Way | None] = {}  # at the last observation
        self._gone: Set[str] = frozenset()  # at the last observation
        self._damper = Damper()
        self._hurry = False  # a change that no action has followed yet
        self._asleep_ns: int | None = None  # how long the machine has slept since it started
        self._slept = False  # as _hurry

    def observe(
        self,
        ways: Mapping[str, Way | None],
        gone: Set[str],
        paths: Mapping[int, Path],
        now: int,
        asleep_ns: int,
    ) -> Changes:
        """`gone`: sources that the machine does not have; `asleep_ns`: CLOCK_BOOTTIME less CLOCK_MONOTONIC."""
        self._settle(ways)
        gone, self._gone = gone & self._gone, gone
        if self._asleep_ns is not None and asleep_ns - self._asleep_ns >= SLEPT_NS:
            self._slept = self._hurry = True
        self._asleep_ns = asleep_ns
        changes = Changes(hurry=self._hurry)
        for key, path in paths.items():
            if path.source in gone:
                changes.close[key] = SOURCE_GONE
            elif self._slept:
                changes.renew[key] = SLEPT
            elif self._differs(path):
                changes.renew[key] = WAY_CHANGED
        if not changes or not self._damper.is_open(now):
            return Changes()
        self._damper.acted(now)
        self._hurry = self._slept = False
        return changes

    def lose(self) -> None:
        """The interface of all ways has gone, or has no carrier: whatever way there is next has appeared then."""
        self.ways = dict.fromkeys(self.ways)
        self._seen = {}

    def _settle(self, ways: Mapping[str, Way | None]) -> None:
        for destination, way in ways.items():
            if destination not in self.ways:
                self.ways[destination] = way
            elif way == self._seen.get(destination) and way != self.ways[destination]:
                self.ways[destination] = way
                self._hurry = self._hurry or (way is not None and way.running)
        self.ways = {destination: way for destination, way in self.ways.items() if destination in ways}
        self._seen = dict(ways)

    def _differs(self, path: Path) -> bool:
        """Whether a new connection would take another way, which can be used."""
        way = self.ways.get(path.destination)
        if way is None or not way.running or path.way is None:
            return False
        return (way.device, way.gateway) != (path.way.device, path.way.gateway)
