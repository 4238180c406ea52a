"""The outbox: what is to go into the book, until the bookkeeper has it there.

    add(day, traffic)    so much more of these peers
    tell(marks)          these marks of quotas were told
    forgive(forgiven)    so many bytes do not count for a quota, and its marks may be told anew
    want(period)         ask what the book has about a period
    tick(now)            learn what has become of the last batch, hand over the next; the usage, once it is known
    close()              hand over the rest, and wait for a moment

One batch is under way at a time. While it is, and after an error, everything waits in memory, however long. An error is
said once, and once that it is over; `failures` counts all. A batch that was not written goes in with the next ones.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.accounting.batch import Batch, Entries, Forgiven, Told, Usage, add_to, forgiven_in, total_of
from pipeline.accounting.bookkeeper import Bookkeeper, Result
from pipeline.log import LOG
from pipeline.policy.quota import Period
from pipeline.policy.traffic_meter import Traffic

WRITE_NS = 5_000_000_000
RETRY_NS = 10_000_000_000
HANG_NS = 10_000_000_000  # after so long a batch counts as failed, although it may yet succeed
CLOSE_SECONDS = 2.0

HANGS = "no answer: is it on a file system whose server has gone?"


class Outbox:
    """`failures`: batches that were not written at once. `problem`: of the last one; "" if it was written.

    `record(kind, subject, text)`: an event (pipeline.events).
    """

    def __init__(self, path: Path, record: Callable[[str, str, str], object] = lambda *event: None) -> None:
        self.path = path
        self._record = record
        self.failures = 0
        self.problem = ""
        self._bookkeeper = Bookkeeper(path)
        self._writer, self._number = secrets.token_hex(8), 0
        self._waiting: Entries = {}
        self._told: list[Told] = []
        self._forgiven: list[Forgiven] = []
        self._given: Batch | None = None
        self._given_at = self._due = 0  # CLOCK_MONOTONIC ns
        self._wanted: Period | None = None

    def add(self, day: date, traffic: Mapping[str, Traffic]) -> None:
        add_to(self._waiting, {(day, peer): each for peer, each in traffic.items()})

    def tell(self, marks: Iterable[Told]) -> None:
        self._told += marks

    def forgive(self, forgiven: Forgiven) -> None:
        self._forgiven.append(forgiven)
        self._told = _without(self._told, self._forgiven)
        self._due = 0

    def want(self, period: Period) -> None:
        """The answer comes at once, or when the book can be read."""
        self._wanted = period
        self._due = 0

    def unwritten(self, period: Period) -> dict[str, Traffic]:
        """The bytes of a period that are not known to be in the book, by peer."""
        entries = dict(self._waiting)
        if self._given is not None:
            add_to(entries, self._given.entries)
        return total_of(entries, period)

    def unwritten_forgiven(self, period: Period) -> dict[str, int]:
        """The bytes of a period whose forgiveness is not known to be in the book, by peer."""
        given = self._given.forgiven if self._given is not None else []
        return forgiven_in([*given, *self._forgiven], period)

    def tick(self, now: int) -> Usage | None:
        """The usage of the period that was asked for, with all that is not in the book yet."""
        usage = self._take(self._bookkeeper.result(), now)
        if self._given is not None and not self.problem and now - self._given_at > HANG_NS:
            self._fail(HANGS)
        if now >= self._due and self._bookkeeper.is_idle and (self._has_more or self._wanted):
            self._give(now)
        return usage

    def await_usage(self, seconds: float, now: int) -> Usage | None:
        """tick(), and wait for the answer for at most so many seconds."""
        if self._bookkeeper.is_idle:
            self._give(now)
        return self._take(self._bookkeeper.result(seconds), now)

    def close(self) -> None:
        """Give up after CLOSE_SECONDS: what is not written then is lost."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._given is not None or self._has_more:
            left = until - time.monotonic()
            if self._bookkeeper.is_idle:
                self._give(time.monotonic_ns())
            found = self._bookkeeper.result(max(0.0, left))
            self._take(found, time.monotonic_ns())
            if found is None or found.error:
                given = self._given.entries if self._given is not None else {}
                lost = sum(each.total for entries in (self._waiting, given) for each in entries.values())
                LOG.error("accounting: %d bytes are in no account: %s", lost, self.problem or HANGS)
                break
        self._bookkeeper.close(max(0.0, until - time.monotonic()))

    def status(self) -> dict[str, Any]:
        """For `status` and `peers`."""
        return {"path": str(self.path), "failures": self.failures, "problem": self.problem}

    @property
    def _has_more(self) -> bool:
        return bool(self._waiting or self._told or self._forgiven)

    def _give(self, now: int) -> None:
        self._number += 1
        self._given = Batch(self._writer, self._number, self._waiting, self._told, self._forgiven)
        self._waiting, self._told, self._forgiven = {}, [], []
        self._given_at, self._due = now, now + WRITE_NS
        self._bookkeeper.give(self._given, self._wanted)

    def _take(self, found: Result | None, now: int) -> Usage | None:
        if found is None or self._given is None:
            return None
        given, self._given = self._given, None
        if found.note:
            LOG.error("accounting: %s", found.note)
            self._record("accounting-failed", "", found.note)
        if found.error:
            add_to(self._waiting, given.entries)
            self._told = _without(given.told, self._forgiven) + self._told
            self._forgiven = given.forgiven + self._forgiven
            self._due = now + RETRY_NS
            self._fail(found.error)
        elif self.problem:
            LOG.info("accounting: %s is written again", self.path)
            self._record("accounting-works", "", f"{self.path} is written again")
            self.problem = ""
        usage = found.usage
        if usage is None or usage.period != self._wanted:
            return None
        self._wanted = None
        forgiven = dict(usage.forgiven)
        for peer, size in forgiven_in(self._forgiven, usage.period).items():
            forgiven[peer] = forgiven.get(peer, 0) + size
        traffic = _sum(usage.traffic, total_of(self._waiting, usage.period))
        return usage._replace(traffic=traffic, forgiven=forgiven)

    def _fail(self, error: str) -> None:
        self.failures += 1
        if error != self.problem:
            self._record("accounting-failed", "", f"{self.path} cannot be written: {error}")
            LOG.error(
                "accounting: %s cannot be written: %s; what is counted waits in memory, and is tried again every %d s",
                *(self.path, error, RETRY_NS // 1_000_000_000),
            )
        self.problem = error


def _without(told: Iterable[Told], forgiven: Iterable[Forgiven]) -> list[Told]:
    """The marks whose quota has not been changed by an operator since."""
    changed = {(each.first, each.peer) for each in forgiven}
    return [each for each in told if (each.first, each.peer) not in changed]


def _sum(one: Mapping[str, Traffic], other: Mapping[str, Traffic]) -> dict[str, Traffic]:
    total = dict(one)
    for peer, traffic in other.items():
        total[peer] = total[peer] + traffic if peer in total else traffic
    return total
