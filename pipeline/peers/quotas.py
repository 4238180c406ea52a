"""The quotas of a server's peers: what each has used in this period, and what follows from it.

    configure(...)       the terms of each peer that is configured or invited, and of all others
    restart(...)         what has been used is this, and these marks have been told: at a start, and in a new period
    add(traffic)         so much more has been used
    set_used(name, size) an operator has corrected what has been used; the marks that are reached now count as told
    refusal(name)        why the peer cannot connect; "" if it can
    rate(name, rate)     its rate, bytes a second: that of its policy, or the lower one of its quota
    take_marks()         the marks that were reached since the last call, each once in a period

A client that proves nothing has no quota: with another name it would have a new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import NamedTuple

from pipeline.peers.registry import ANYBODY
from pipeline.policy import quota
from pipeline.policy.quota import EVER, UNLIMITED, Period, QuotaState, QuotaTerms

UNIT_NAMES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"))


class Mark(NamedTuple):
    """A peer has reached so many percent of a quota."""

    peer: str
    percent: int
    limit: int

    def __str__(self) -> str:
        return f"{self.percent} % of {self.limit}"


class Quotas:
    """`period`: the one that the numbers are of; before restart() there is none."""

    def __init__(self) -> None:
        self.period = EVER
        self._own: Mapping[str, QuotaTerms] = {}
        self._general = UNLIMITED
        self._used: dict[str, int] = {}
        self._told: set[tuple[date, str, str]] = set()  # first day of the period, name, text of the mark

    def configure(self, own: Mapping[str, QuotaTerms], general: QuotaTerms) -> None:
        self._own, self._general = own, general

    def restart(self, period: Period, used: Mapping[str, int], told: Collection[tuple[str, str]]) -> None:
        """`told`: name and text of each mark."""
        self.period, self._used = period, dict(used)
        self._told.update((period.first, *mark) for mark in told)

    def add(self, used: Mapping[str, int]) -> None:
        for name, size in used.items():
            self._used[name] = self._used.get(name, 0) + size

    def set_used(self, name: str, size: int) -> list[Mark]:
        """The marks that are reached with so much; those beyond may be told again."""
        self._used[name] = size
        self._told = {mark for mark in self._told if mark[:2] != (self.period.first, name)}
        reached = self._reached(name, size)
        self._told.update((self.period.first, name, str(mark)) for mark in reached)
        return reached

    # -- one peer

    def terms(self, name: str) -> QuotaTerms:
        if name.startswith(ANYBODY):
            return UNLIMITED
        return self._own.get(name, self._general)

    def used(self, name: str) -> int:
        return self._used.get(name, 0)

    def state(self, name: str) -> QuotaState:
        return quota.state_of(self.terms(name), self.used(name))

    def refusal(self, name: str) -> str:
        if self.state(name) is not QuotaState.STOPPED:
            return ""
        return f"the quota of {gigabytes(self.terms(name).limit)} is used up until {self.period.end_text} (UTC)"

    def rate(self, name: str, rate: int) -> int:
        if self.state(name) is not QuotaState.SLOWED:
            return rate
        slow = self.terms(name).rate
        return min(rate, slow) if rate else slow

    # -- all peers

    def names(self) -> list[str]:
        """Of all that have used anything in this period."""
        return list(self._used)

    def take_marks(self) -> list[Mark]:
        """The highest of a peer's that were not told; those below it count as told."""
        marks = []
        for name, used in self._used.items():
            reached = self._reached(name, used)
            new = [mark for mark in reached if (self.period.first, name, str(mark)) not in self._told]
            self._told.update((self.period.first, name, str(mark)) for mark in new)
            marks += new[-1:] if reached[-1:] == new[-1:] else []
        return marks

    def _reached(self, name: str, used: int) -> list[Mark]:
        terms = self.terms(name)
        return [Mark(name, percent, terms.limit) for percent in quota.percents(terms, used)]


def gigabytes(size: int) -> str:
    """A quota in words, such as 50 GB."""
    factor, unit = next(((factor, unit) for factor, unit in UNIT_NAMES if size >= factor), UNIT_NAMES[-1])
    return f"{size / factor:g} {unit}"
