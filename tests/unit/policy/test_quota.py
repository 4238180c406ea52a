"""Quotas: periods, and what follows from what was used."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.quota import UNLIMITED, Period, QuotaState, QuotaTerms, percents, period_of, state_of

days = st.dates(date(1970, 1, 1), date(2199, 12, 31))


@pytest.mark.parametrize(
    ("today", "day", "first", "following"),
    [
        (date(2026, 11, 29), 1, date(2026, 11, 1), date(2026, 12, 1)),
        (date(2026, 12, 31), 1, date(2026, 12, 1), date(2027, 1, 1)),
        (date(2026, 1, 14), 15, date(2025, 12, 15), date(2026, 1, 15)),
        (date(2026, 1, 15), 15, date(2026, 1, 15), date(2026, 2, 15)),
        (date(2024, 2, 29), 28, date(2024, 2, 28), date(2024, 3, 28)),
    ],
)
def test_a_period_begins_on_its_day_of_the_month(today: date, day: int, first: date, following: date) -> None:
    assert period_of(today, day) == Period(first, following)


@given(days, st.integers(1, 28))
def test_each_day_is_in_one_period_and_periods_follow_each_other(today: date, day: int) -> None:
    period = period_of(today, day)
    assert period.first <= today < period.next
    assert period_of(period.first, day) == period == period_of(period.next - timedelta(1), day)
    assert period_of(period.next, day).first == period.next


def test_the_end_of_a_period_is_the_day_on_which_the_next_one_begins() -> None:
    assert period_of(date(2026, 11, 29), 1).end_text == "1 December"


def test_without_a_quota_nothing_follows() -> None:
    assert state_of(UNLIMITED, 1 << 60) is QuotaState.OPEN and percents(UNLIMITED, 1 << 60) == []


def test_a_quota_that_is_used_up_slows_or_stops() -> None:
    slow, stop = QuotaTerms(1000, "slow", 10), QuotaTerms(1000, "stop")
    assert [state_of(slow, used) for used in (999, 1000)] == [QuotaState.OPEN, QuotaState.SLOWED]
    assert [state_of(stop, used) for used in (999, 1000)] == [QuotaState.OPEN, QuotaState.STOPPED]
    assert [percents(stop, used) for used in (799, 800, 999, 1000)] == [[], [80], [80], [80, 100]]
