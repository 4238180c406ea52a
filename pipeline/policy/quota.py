"""Quotas: how many bytes a peer may receive and send in a month, and what happens beyond.

    period_of(today, day)     the month, from this day of the calendar month to the same day of the next
    state_of(terms, used)     open, slowed or stopped
    percents(terms, used)     the marks that have been reached, each of which is told once in a period

Days are days of UTC, which has no hour twice and none left out. A peer may use more than its quota by what it carries
between two looks, a second apart.
"""

from __future__ import annotations

import calendar
from datetime import date
from enum import StrEnum
from typing import Literal, NamedTuple

BYTES_PER_GB = 1_000_000_000
MARKS = 80, 100  # percent

QuotaAction = Literal["slow", "stop"]


class QuotaTerms(NamedTuple):
    """`limit`: bytes in a period, both directions together; 0: no quota. `rate`: bytes a second for "slow"."""

    limit: int = 0
    action: QuotaAction = "stop"
    rate: int = 0


UNLIMITED = QuotaTerms()


class Period(NamedTuple):
    """The days from `first` up to, but without, `next`."""

    first: date
    next: date

    @property
    def end_text(self) -> str:
        """The day on which the next one begins, such as 1 December."""
        return f"{self.next.day} {calendar.month_name[self.next.month]}"


EVER = Period(date.min, date.max)


class QuotaState(StrEnum):
    """The effect of a quota on its peer."""

    OPEN = "open"
    SLOWED = "slowed"
    STOPPED = "stopped"


def period_of(today: date, day: int) -> Period:
    """The period that a day is in. `day`: 1 to 28, on which periods begin."""
    first = today.replace(day=day)
    if first > today:
        first = _add_month(first, -1)
    return Period(first, _add_month(first, 1))


def state_of(terms: QuotaTerms, used: int) -> QuotaState:
    if not terms.limit or used < terms.limit:
        return QuotaState.OPEN
    return QuotaState.SLOWED if terms.action == "slow" else QuotaState.STOPPED


def percents(terms: QuotaTerms, used: int) -> list[int]:
    """The MARKS that have been reached."""
    return [percent for percent in MARKS if terms.limit and 100 * used >= percent * terms.limit]


def _add_month(first: date, months: int) -> date:
    year, month = divmod(12 * first.year + first.month - 1 + months, 12)
    return first.replace(year=year, month=month + 1)
