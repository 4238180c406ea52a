"""The log lines of a client about its server: few, however many connections come and go. Pure.

    failed         an attempt has failed: each kind of reason is said once, then a summary now and then
    established    a connection is there
    ended          a connection has ended
    fell_back      an address has not worked, another one has
    lines(now)     the lines that are due
    present        why not all connections stand at this moment, for `status`

Connections that come and go are gathered for a moment, so that a wave of them is one line. Waves that follow each
other closely are gathered for longer and longer. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

SECOND = 1_000_000_000
GATHER_NS = SECOND  # of a wave, at first
GATHER_MAX_NS = 60 * SECOND
CALM_NS = 60 * SECOND  # without a wave, after which the next one is gathered as the first
SUMMARY_NS = 60 * SECOND  # after the first failure, while there is no connection; then twice as long each time
SUMMARY_PARTIAL_NS = 10 * SECOND  # after the first failure, while there are some connections: it may heal by itself
SUMMARY_MAX_NS = 3600 * SECOND
SAY_AGAIN_NS = 60 * SECOND  # before a reason is said again, after the server was back
KINDS_MAX = 16  # a server may give a reason of its own each time
LISTED_MAX = 3  # addresses or reasons in a line

WARNING, INFO, DEBUG = "warning", "info", "debug"


class Line(NamedTuple):
    """One log line."""

    level: str
    text: str


class PresentTrouble(NamedTuple):
    """Why not all connections stand, or why one that stands cannot be replaced."""

    reason: str  # "" if nothing is wrong
    failures: int = 0  # failed attempts; 0: none has failed since a connection ended
    since_ns: int = 0  # of the first of them


class Trouble:
    """The failed attempts since the server was there with all connections, and what was said of them."""

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = 0  # the last one
        self._since = 0
        self._last = ""
        self._said: dict[str, int] = {}  # kinds of reasons, and when
        self._summary_at = 0
        self._summary_ns = SUMMARY_NS

    def failed(self, kind: str, text: str, partial: bool, now: int) -> bool:
        """An attempt has failed. `partial`: there are connections. Whether to say so at once."""
        if not self.failures:
            self._since = now
            self._summary_ns = SUMMARY_NS
            self._summary_at = now + (SUMMARY_PARTIAL_NS if partial else SUMMARY_NS)
        self.failures += 1
        self.failed_at = now
        self._last = text
        said_at = self._said.get(kind)
        known = said_at is not None and (said_at >= self._since or now - said_at < SAY_AGAIN_NS)
        if partial or known or (said_at is None and len(self._said) >= KINDS_MAX):
            return False
        self._said[kind] = now
        return True

    def grew(self, now: int) -> None:
        """The last connection has ended: a summary of those that failed beside it may be far away."""
        self._summary_ns = SUMMARY_NS
        self._summary_at = min(self._summary_at, now + SUMMARY_NS)

    def summary(self, now: int) -> str:
        """The summary, if it is due; else ""."""
        if not self.failures or now < self._summary_at:
            return ""
        self._summary_at = now + self._summary_ns
        self._summary_ns = min(2 * self._summary_ns, SUMMARY_MAX_NS)
        return f"{self._count(now)}, last: {self._last}"

    @property
    def present(self) -> PresentTrouble:
        return PresentTrouble(self._last, self.failures, self._since) if self.failures else PresentTrouble("")

    def end(self, now: int) -> str:
        """All connections are there: a clause about what it took, "" for nothing."""
        clause = f", after {self._count(now)}" if self.failures else ""
        self.failures = 0
        if len(self._said) >= KINDS_MAX:
            self._said.clear()
        return clause

    def _count(self, now: int) -> str:
        seconds = (now - self._since) // SECOND
        spent = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
        return f"{self.failures} failed attempt{'s' * (self.failures > 1)} in {spent}"


class ServerNews:
    """`server`: how a line names it; `host`: as configured; `total`: connections that are kept up."""

    def __init__(self, server: str, host: str, total: int) -> None:
        self._server = server
        self._host = host
        self._total = total
        self._up = 0
        self._trouble = Trouble()
        self._lines: list[Line] = []
        self._ended: Counter[str] = Counter()  # in the present wave, by reason
        self._established = 0  # in the present wave
        self._where = ""  # the address of the last one established
        self._established_at = 0
        self._last_end = ""  # why the last connection has ended
        self._unused: set[str] = set()  # addresses of which it was said that they do not work
        self._gather_ns = GATHER_NS
        self._flush_at: int | None = None
        self._flushed_at = -CALM_NS

    def want(self, total: int, up: int) -> None:
        """So many connections are kept up from now on, and so many of them stand."""
        self._total, self._up = total, up

    def failed(self, failures: Mapping[str, str], why: str, now: int) -> None:
        """An attempt has failed: a reason for each address, or `why` for want of addresses."""
        kind = " ".join(sorted({*failures.values(), why}))
        text = self._reasons(failures) if failures else why
        if self._trouble.failed(kind, text, self._up > 0, now):
            self._say(WARNING, f"{text}; trying again until it succeeds")

    def fell_back(self, failures: Mapping[str, str], host: str, quiet: frozenset[str]) -> None:
        """`host` works, the addresses before it do not. Reasons in `quiet` are no news at a machine without IPv6."""
        self._unused.discard(host)
        for other, why in failures.items():
            if other not in self._unused and other != host:
                self._unused.add(other)
                self._say(DEBUG if why in quiet else WARNING, f"{other} does not work ({why}), using {host}")

    def established(self, address: str, now: int) -> None:
        self._open_wave(now)
        self._up += 1
        self._established += 1
        self._where = address
        self._established_at = now

    def ended(self, why: str, now: int) -> None:
        self._open_wave(now)
        self._up -= 1
        self._ended[why] += 1
        self._last_end = why
        if not self._up:
            self._trouble.grew(now)

    def lines(self, now: int) -> list[Line]:
        """The lines that are due."""
        if self._flush_at is not None:
            complete = self._up == self._total and self._gather_ns == GATHER_NS
            if complete or now >= self._flush_at:
                self._end_wave(now)
        summary = self._trouble.summary(now)
        if summary:
            self._say(WARNING, f"{self._state()}: {summary}")
        lines, self._lines = self._lines, []
        return lines

    @property
    def present(self) -> PresentTrouble:
        """The trouble of this moment; until an attempt fails or succeeds, the end of a connection."""
        if self._up == self._total:
            is_over = self._established_at >= self._trouble.failed_at
            return PresentTrouble("") if is_over else self._trouble.present
        return self._trouble.present if self._trouble.failures else PresentTrouble(self._last_end)

    def _open_wave(self, now: int) -> None:
        if self._flush_at is None:
            calm = now - self._flushed_at >= CALM_NS
            self._gather_ns = GATHER_NS if calm else min(2 * self._gather_ns, GATHER_MAX_NS)
            self._flush_at = now + self._gather_ns

    def _end_wave(self, now: int) -> None:
        said = []
        ended = self._ended.total()
        if ended:
            reasons = [f"{why} ({count})" if len(self._ended) > 1 else why for why, count in self._ended.most_common()]
            said.append(f"{ended} connection{'s' * (ended > 1)} ended: {_listed(reasons)}")
        if self._established:
            clause = self._trouble.end(self._established_at) if self._up == self._total else ""
            said.append(f"{self._up} of {self._total} connections to {self._where} established{clause}")
        elif not self._up:
            said.append("none is left, dialing again")
        self._say(INFO, "; ".join(said))
        self._ended.clear()
        self._established = 0
        self._flush_at, self._flushed_at = None, now

    def _state(self) -> str:
        if not self._up:
            return "still out of reach"
        if self._up < self._total:
            return f"only {self._up} of {self._total} connections"
        return f"{self._up} of {self._total} connections stand, but cannot be replaced"

    def _reasons(self, failures: Mapping[str, str]) -> str:
        """Each reason with its addresses; without them if the one address is what the configuration says."""
        if list(failures) == [self._host]:
            return failures[self._host]
        by_reason: dict[str, list[str]] = {}
        for host, why in failures.items():
            by_reason.setdefault(why, []).append(host)
        return "; ".join(f"{_listed(hosts)}: {why}" for why, hosts in by_reason.items())

    def _say(self, level: str, text: str) -> None:
        self._lines.append(Line(level, f"{self._server}: {text}"))


def _listed(items: list[str]) -> str:
    more = len(items) - LISTED_MAX
    return ", ".join(items[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
