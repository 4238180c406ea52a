"""The one loop of a crowd, and what it reports.

All links hang on one selector. Attempts are begun, and silence is looked for, between its waits; so what is due waits
TICK_SECONDS at most. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import random
import selectors
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from pipeline.errors import PeerError
from pipeline.wire.framing import KEEPALIVE_FRAME
from tools.load.quantiles import quantile
from tools.load.swarm_client import ESTABLISHED, Link, Member, Peer, Settings

TICK_SECONDS = 0.05
LOOK_SECONDS = 1.0  # between looks at what is silent or overdue
WHY_MOST = 20  # different reasons in a report


class Sample(msgspec.Struct):
    """What there was at `time_ns`, and what had been counted until then."""

    time_ns: int
    clients: int
    """With at least one connection."""
    complete: int
    """With all of theirs."""
    connections: int
    attempts: int
    failed: int
    """Attempts that ended before the welcome."""
    lost: int
    """Established connections that ended."""
    echoes: int
    """Echo requests answered."""


class Outage(msgspec.Struct):
    """From the first client without a connection to the moment when all had one again."""

    time_ns: int
    seconds: float
    clients: int
    """That had none for a while."""
    p50_seconds: float
    p99_seconds: float
    """Of the clients, each from its loss to its return."""
    complete_seconds: float | None
    """Until all had all of their connections; None if that has not come before the end."""


class Summary(msgspec.Struct, kw_only=True):
    schema_version: int = 1
    clients: int
    connections_each: int
    invited_seconds: float
    """To get the keys."""
    first_seconds: float | None
    """From the start until all clients had a connection; None: they never had."""
    complete_seconds: float | None
    """The same for all of their connections."""
    greeting_p50_ms: float
    greeting_p99_ms: float
    greeting_max_ms: float
    """From dialling to the welcome, TCP and TLS included, of each connection that got there."""
    attempts: int
    lost: int
    failed: dict[str, int]
    """Attempts that ended before the welcome, by reason."""
    echoes: int
    other_packets: int
    outages: list[Outage]
    addresses: list[list[str]]


class Crowd:
    """All members and their one loop. `report` gets each Sample and Outage."""

    def __init__(self, peers: Sequence[Peer], settings: Settings, report: Callable[[dict], None]) -> None:
        session_number = time.time_ns()
        self.members = [Member(number, peer, settings, session_number) for number, peer in enumerate(peers, start=1)]
        self.links = [link for member in self.members for link in member.links]
        self._settings = settings
        self._report = report
        self._selector = selectors.DefaultSelector()
        self._started = time.monotonic_ns()
        self._first = self._complete = 0  # when all had one, and all of their connections
        self._gone: dict[Member, int] = {}  # since when, of those that had one
        self._outage_began = 0
        self._returns: list[float] = []  # of this outage: how many seconds each was gone
        self._outage: Outage | None = None  # over, but for connections that are not back yet
        self.outages: list[Outage] = []
        self.attempts = self.lost = 0
        self.failed: Counter[str] = Counter()

    def run(self, seconds: float, interval: float, ramp: float) -> None:
        """Until the time is over, or stop(). `ramp`: the first attempts are spread over so many seconds."""
        self._running = True
        for link in self.links:
            link.due = self._started + int(ramp * 1e9 * random.random())
        end = self._started + int(seconds * 1e9) if seconds else 0
        next_dial = next_look = next_sample = 0
        while self._running:
            now = time.monotonic_ns()
            if end and now >= end:
                break
            if now >= next_dial:
                next_dial = now + int(TICK_SECONDS * 1e9)
                for member in self.members:
                    for link in member.dial_due(now):
                        self._dial(link, now)
            for key, _ in self._selector.select(TICK_SECONDS):
                self._step(key.data)
            if now >= next_look:
                next_look = now + int(LOOK_SECONDS * 1e9)
                self._look(now)
            if now >= next_sample:
                next_sample = now + int(interval * 1e9)
                self._report({"sample": self.sample(now)})

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        for link in self.links:
            link.close()
        self._selector.close()

    def sample(self, now: int) -> Sample:
        return Sample(
            time_ns=now,
            clients=sum(member.established > 0 for member in self.members),
            complete=sum(member.complete for member in self.members),
            connections=sum(member.established for member in self.members),
            attempts=self.attempts,
            failed=self.failed.total(),
            lost=self.lost,
            echoes=sum(member.echoes for member in self.members),
        )

    def summary(self, invited_seconds: float) -> Summary:
        took = [ns / 1e6 for member in self.members for ns in member.greetings_ns] or [0.0]
        return Summary(
            clients=len(self.members),
            connections_each=len(self.members[0].links),
            invited_seconds=invited_seconds,
            first_seconds=self._since_start(self._first),
            complete_seconds=self._since_start(self._complete),
            greeting_p50_ms=quantile(took, 0.5),
            greeting_p99_ms=quantile(took, 0.99),
            greeting_max_ms=max(took),
            attempts=self.attempts,
            lost=self.lost,
            failed=dict(self.failed.most_common(WHY_MOST)),
            echoes=sum(member.echoes for member in self.members),
            other_packets=sum(member.others for member in self.members),
            outages=self.outages,
            addresses=[member.addresses for member in self.members],
        )

    def _since_start(self, when: int) -> float | None:
        return (when - self._started) / 1e9 if when else None

    # -- a link's life

    def _dial(self, link: Link, now: int) -> None:
        self.attempts += 1
        try:
            link.dial(now)
            self._selector.register(link.socket, selectors.EVENT_WRITE, link)
        except OSError as error:
            self._end(link, error, now)

    def _step(self, link: Link) -> None:
        now = time.monotonic_ns()
        was = link.state
        try:
            link.step(now)
        except (OSError, EOFError, PeerError) as error:
            self._end(link, error, now)
            return
        self._watch(link)
        if link.state is ESTABLISHED and was is not ESTABLISHED:
            self._came(link.member, now)

    def _watch(self, link: Link) -> None:
        """For what it waits now; one that reads nothing may wait for nothing."""
        events = (0 if link.deaf else selectors.EVENT_READ) | (selectors.EVENT_WRITE if link.wants_write else 0)
        key = self._selector.get_map().get(link.socket)
        if key is None and events:
            self._selector.register(link.socket, events, link)
        elif key is not None and not events:
            self._selector.unregister(link.socket)
        elif key is not None and key.events != events:
            self._selector.modify(link.socket, events, link)

    def _end(self, link: Link, error: Exception, now: int) -> None:
        if link.socket is not None and link.socket in self._selector.get_map():
            self._selector.unregister(link.socket)
        established = link.state is ESTABLISHED
        link.member.lost(link, now)
        if not established:
            self.failed[getattr(error, "strerror", None) or str(error)] += 1
            return
        self.lost += 1
        if not link.member.established:
            if not self._gone:
                self._outage_began, self._returns = now, []
            self._gone[link.member] = now

    def _came(self, member: Member, now: int) -> None:
        """Another connection of this member is established."""
        if member in self._gone:
            self._returns.append((now - self._gone.pop(member)) / 1e9)
            if not self._gone:
                self._tell_outage()
                self._outage = Outage(
                    now,
                    (now - self._outage_began) / 1e9,
                    len(self._returns),
                    quantile(self._returns, 0.5),
                    quantile(self._returns, 0.99),
                    None,
                )
                self.outages.append(self._outage)
        if not self._first and all(each.established for each in self.members):
            self._first = now
        if (self._outage or not self._complete) and all(each.complete for each in self.members):
            self._complete = self._complete or now
            if self._outage:
                self._outage.complete_seconds = (now - self._outage_began) / 1e9
                self._tell_outage()

    def _tell_outage(self) -> None:
        if self._outage:
            self._report({"outage": self._outage})
        self._outage = None

    def _look(self, now: int) -> None:
        for link in self.links:
            why = link.member.overdue(link, now)
            if why:
                self._end(link, OSError(0, why), now)
            elif link.state is ESTABLISHED and now - link.spoke >= self._settings.keepalive * 1e9:
                self._keep_alive(link, now)

    def _keep_alive(self, link: Link, now: int) -> None:
        try:
            link.send(KEEPALIVE_FRAME, now)
            self._watch(link)
        except OSError as error:
            self._end(link, error, now)
