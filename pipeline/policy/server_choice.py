"""Which of its servers a client is at, and which one stands by. Pure.

    step(reports, now)     -> whether anything has changed: `current`, `reserve`, `why`
    follow(servers)        the list is another one, after a reload or a lookup of SRV records

A *visit* is a time at one server. It has a number of its own, which is the session number of its HELLOs. All packets
go to the current visit. The *reserve* is a second one whose connections are made meanwhile, and carry nothing yet:

    standing by    one connection, to the server that comes next
    complete       all connections, since the client is about to move there

    a sign of the current server                     what follows
    it has said that it stops, or silence            a complete reserve; the move when it is ready
    no connection, and an attempt has failed         the move at once, to the reserve if it has a connection
    no connection for GRACE_NS                       that as well
    the first of the list is not the current one     after `home_ns`, a complete reserve there, and the move

Nothing that works is given up for what may not work: where the current server has connections, a move waits for those
to the next one. A server that has failed is shunned for a while, longer each time. If all are shunned, they are tried
in turn. Without `has_reserve` no second visit is made: a move ends the connections first. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

SECOND = 1_000_000_000
GRACE_NS = 300_000_000  # without a connection: a worker of the server that has died is replaced in less
PATIENCE_NS = 2 * SECOND  # for the first connection of a visit; twice as long in each further round
PATIENCE_MAX_NS = 16 * SECOND
READY_NS = SECOND  # after its first connection, the others of a complete reserve are not waited for
SHUN_NS = 5 * SECOND  # at first; twice as long each time
SHUN_MAX_NS = 300 * SECOND
LEAVING_NS = 15 * SECOND  # a server that has said that it stops is shunned for so long
STAY_NS = 100_000_000  # after a round of failures: at each server, so long at least; twice as long in each further one
STAY_MAX_NS = 10 * SECOND
HOME_MAX_NS = 3600 * SECOND  # between attempts to come home

FIRST = "it comes first in remote_addr"
HOME = "it comes first in remote_addr, and is there again"
LEAVING = "the server before it is about to stop"
SILENT = "the server before it was silent"
DROPPED = "the server before it is no longer in the list"


class Server(NamedTuple):
    """One of the servers of a client."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def certificate_name(self) -> str:
        """The host as certificates name it: without a zone and without a closing dot."""
        return self.host.partition("%")[0].removesuffix(".")


class Visit(NamedTuple):
    server: Server
    number: int


class VisitReport(NamedTuple):
    """The connections of a visit, of all workers together."""

    established: int = 0
    wanted: int = 0  # that the workers dial, or have
    silent: bool = False  # nothing is heard although something is outstanding
    leaving: bool = False  # the server has said that it stops
    failures: int = 0  # failed attempts
    why: str = ""  # of the last trouble


NO_REPORT = VisitReport()


class Terms(NamedTuple):
    """The wishes of the settings."""

    prefers_first: bool
    home_ns: int
    stands_by: bool
    has_reserve: bool


class ServerChoice:
    """`servers`: at least one, the preferred one first; `new_number`: a higher number each time."""

    def __init__(self, servers: Sequence[Server], terms: Terms, new_number: Callable[[], int], now: int) -> None:
        self.servers = list(dict.fromkeys(servers))
        self.terms = terms
        self._new_number = new_number
        self.current = Visit(self.servers[0], new_number())
        self.reserve: Visit | None = None
        self.is_complete = False  # of the reserve: it gets all connections
        self.why = FIRST
        self.since = now  # of the current visit
        self._dialed_since = now  # since when workers dial the current server: they take a while to start
        self._stood_since = 0  # when the current visit got its first connection; 0: it has had none
        self._gone_since = 0  # since when it has none again
        self._row = 0  # visits in a row that have failed
        self._failures = 0  # of the current visit that are known
        self._reserve_since = 0
        self._reserve_ready = 0  # when it got its first connection; 0: it has none
        self._shunned: dict[Server, int] = {}  # and until when
        self._leaving: dict[Server, int] = {}  # that are about to stop, and until when that counts
        self._tried = {self.current.server: now}  # when a visit to each began last
        self._shuns: dict[Server, int] = {}  # how often, since a visit to it has lasted
        self._short_stays = 0  # at the first server, in a row
        self._home_wait = terms.home_ns
        self._home_at = now

    def follow(self, servers: Sequence[Server]) -> None:
        """Use this list from now on; an empty one changes nothing."""
        self.servers = list(dict.fromkeys(servers)) or self.servers

    # -- a step

    def step(self, reports: Mapping[int, VisitReport], now: int) -> bool:
        before = self.current, self.reserve, self.is_complete
        here = reports.get(self.current.number, NO_REPORT)
        self._note(here, now)
        self._judge_reserve(reports, now)
        others = [each for each in self.servers if each != self.current.server]
        if not others:
            self._drop_reserve()
        elif not here.established:
            self._find_another(here, reports, now)
        else:
            self._keep_or_move(here, reports, now)
        return (self.current, self.reserve, self.is_complete) != before

    def _note(self, here: VisitReport, now: int) -> None:
        if not here.wanted:
            self._dialed_since = now
        if here.leaving:
            self._note_leaving(self.current.server, now)
        if here.established:
            if not self._stood_since:
                self._stood_since = now
                self._home_at = now + self._home_wait
            self._gone_since = self._row = 0
            self._failures = here.failures
            if now - self._stood_since > SHUN_NS:
                self._shuns.pop(self.current.server, None)
        elif not self._gone_since:
            self._gone_since = now

    def _note_leaving(self, server: Server, now: int) -> None:
        self._shunned[server] = self._leaving[server] = now + LEAVING_NS

    # -- without a connection

    def _find_another(self, here: VisitReport, reports: Mapping[int, VisitReport], now: int) -> None:
        why = self._reason_to_go(here, now)
        if not why:
            return
        reserve = self.reserve
        if reserve is not None and reports.get(reserve.number, NO_REPORT).established:
            self._promote(reserve, why, now)
            return
        rounds = self._row // len(self.servers)
        if rounds and now - self.since < min(STAY_NS << min(rounds, 10), STAY_MAX_NS):
            return
        self._row += 1
        self._shun(self.current.server, now)
        target = self._next(now)
        if target is not None:
            known = reserve if reserve is not None and reserve.server == target else None
            self._promote(known or Visit(target, self._new_number()), why, now)

    def _reason_to_go(self, here: VisitReport, now: int) -> str:
        said = here.why or "no answer"
        before = f"{self.current.server} {'was lost' if self._stood_since else 'is out of reach'}: {said}"
        if here.leaving:
            return LEAVING
        if here.failures > self._failures:
            return before
        if self._stood_since:
            return before if now - self._gone_since >= GRACE_NS else ""
        patience = min(PATIENCE_NS << min(self._row // len(self.servers), 10), PATIENCE_MAX_NS)
        return before if now - self._dialed_since >= patience else ""

    # -- with connections

    def _keep_or_move(self, here: VisitReport, reports: Mapping[int, VisitReport], now: int) -> None:
        why, target = "", None
        if here.leaving:
            why, target = LEAVING, self._next(now)
        elif here.silent:
            why, target = SILENT, self._next(now)
        elif self.current.server not in self.servers:
            why, target = DROPPED, self._next(now)
        elif self._is_home_due(now):
            why, target = HOME, self._home(now)
        if target is None:
            self._stand_by(now)
        elif not self.terms.has_reserve:
            if why != HOME:  # nothing is known of the first server, and this one works
                self._promote(Visit(target, self._new_number()), why, now)
        else:
            self._reserve(target, now, complete=True)
            if self.reserve is not None and self._is_ready(reports, now, urgent=here.silent):
                self._promote(self.reserve, why, now)

    def _is_home_due(self, now: int) -> bool:
        return self.terms.prefers_first and self.current.server != self.servers[0] and now >= self._home_at

    def _home(self, now: int) -> Server | None:
        """A better server than the current one, if there is any that is not shunned."""
        better = self.servers[: self.servers.index(self.current.server)]
        return next((each for each in better if self._shunned.get(each, 0) <= now), None)

    def _stand_by(self, now: int) -> None:
        if not (self.terms.stands_by and self.terms.has_reserve):
            self._drop_reserve()
        elif self.reserve is not None and self.reserve.server in self.servers:
            self.is_complete = False
        else:
            target = self._next(now)
            if target is not None and self._leaving.get(target, 0) <= now:
                self._reserve(target, now, complete=False)

    def _is_ready(self, reports: Mapping[int, VisitReport], now: int, urgent: bool) -> bool:
        if self.reserve is None or not self._reserve_ready:
            return False
        report = reports.get(self.reserve.number, NO_REPORT)
        if not report.established or report.silent:
            return False
        return urgent or report.established >= max(1, report.wanted) > 1 or now - self._reserve_ready >= READY_NS

    # -- the reserve

    def _reserve(self, target: Server, now: int, complete: bool) -> None:
        if self.reserve is None or self.reserve.server != target:
            standing = self.reserve is not None and self._reserve_ready and self.reserve.server in self.servers
            if not (standing and self.is_complete is complete):
                self.reserve = Visit(target, self._new_number())
                self._reserve_since, self._reserve_ready = now, 0
        if complete and not self.is_complete and self._reserve_ready:
            self._reserve_ready = now  # the further connections have their time
        self.is_complete = complete

    def _judge_reserve(self, reports: Mapping[int, VisitReport], now: int) -> None:
        """Give up a reserve that has failed, if there is another server that may do."""
        if self.reserve is None:
            return
        report = reports.get(self.reserve.number, NO_REPORT)
        if not report.wanted:
            self._reserve_since = now
        if report.leaving:
            self._note_leaving(self.reserve.server, now)
            self._drop_reserve()
            return
        if report.established:
            self._reserve_ready = self._reserve_ready or now
            return
        self._reserve_ready = 0
        if report.failures or now - self._reserve_since >= PATIENCE_NS:
            self._shun(self.reserve.server, now)
            if self.reserve.server in self.servers[: self._place]:
                self._home_at = max(self._home_at, now + self.terms.home_ns)
            following = self._next(now)
            if following != self.reserve.server or self.is_complete:
                self.reserve = None
            else:  # it is the only one: its worker goes on dialing it, with pauses
                self._reserve_since = now

    def _drop_reserve(self) -> None:
        self.reserve, self.is_complete = None, False

    # -- the move

    def _promote(self, visit: Visit, why: str, now: int) -> None:
        before = self.current.server
        if self._place == 0 and why != LEAVING:
            has_lasted = self._stood_since and now - self._stood_since >= self.terms.home_ns
            self._short_stays = 0 if has_lasted else self._short_stays + 1
        longer = max(0, min(self._short_stays - 1, 10))  # home does not last: wait longer each time
        self._home_wait = max(self.terms.home_ns, min(self.terms.home_ns << longer, HOME_MAX_NS))
        if why == SILENT:
            self._shun(before, now)
        self.current, self.why, self.since = visit, why, now
        self._tried[visit.server] = self._dialed_since = now
        self._stood_since = self._gone_since = self._failures = 0
        self._drop_reserve()

    @property
    def _place(self) -> int:
        """Of the current server in the list; behind all if it is no longer there."""
        server = self.current.server
        return self.servers.index(server) if server in self.servers else len(self.servers)

    def _next(self, now: int) -> Server | None:
        """The server to go to: not shunned, the preferred one first; else the one that was not tried for longest."""
        others = [each for each in self.servers if each != self.current.server]
        if not self.terms.prefers_first and self.current.server in self.servers:
            others = [*self.servers[self._place + 1 :], *self.servers[: self._place]]
        free = [each for each in others if self._shunned.get(each, 0) <= now]
        return free[0] if free else min(others, key=lambda each: self._tried.get(each, 0), default=None)

    def _shun(self, server: Server, now: int) -> None:
        if self._shunned.get(server, 0) > now:
            return
        count = self._shuns[server] = self._shuns.get(server, 0) + 1
        self._shunned[server] = now + min(SHUN_NS << min(count - 1, 10), SHUN_MAX_NS)
