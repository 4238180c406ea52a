"""How long a process did not run: only what goes beyond the usual time between two looks at the clock."""

from __future__ import annotations

import pytest

from pipeline.policy.pauses import LOOK_NS, Pauses

SECOND = 1_000_000_000
NOW = 1_000 * SECOND


def test_the_first_look_misses_nothing() -> None:
    assert Pauses().missed(NOW) == 0


@pytest.mark.parametrize("gap", [0, SECOND // 10, LOOK_NS])
def test_looks_in_time_miss_nothing(gap: int) -> None:
    pauses = Pauses()
    assert [pauses.missed(NOW + number * gap) for number in range(10)] == [0] * 10


def test_a_late_look_has_missed_what_goes_beyond_one_second() -> None:
    pauses = Pauses()
    pauses.missed(NOW)
    assert pauses.missed(NOW + 8 * SECOND) == 7 * SECOND
    assert pauses.missed(NOW + 8 * SECOND + 1) == 0


def test_a_machine_that_was_suspended_has_a_boot_time_that_is_further_ahead() -> None:
    pauses = Pauses()
    assert pauses.suspended(NOW + 5 * SECOND, NOW) == 0  # it was suspended before this process began
    assert pauses.suspended(NOW + 6 * SECOND, NOW + SECOND) == 0
    assert pauses.suspended(NOW + 3606 * SECOND, NOW + SECOND) == 3600 * SECOND
    assert pauses.suspended(NOW + 3607 * SECOND, NOW + 2 * SECOND) == 0


def test_a_pause_between_the_two_clocks_is_no_suspension() -> None:
    pauses = Pauses()
    pauses.suspended(NOW, NOW)
    assert pauses.suspended(NOW + SECOND, NOW + 46 * SECOND) == 0  # we were stopped after the first clock was read
    assert pauses.suspended(NOW + 47 * SECOND, NOW + 47 * SECOND) == 0
