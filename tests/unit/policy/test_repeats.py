"""Equal texts are counted: the first one at once, no count lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.repeats import KEYS_MAX, WINDOW_NS, Repeats


def test_the_first_is_new_and_equal_ones_are_counted_until_the_window_ends() -> None:
    repeats: Repeats[str] = Repeats()
    assert repeats.is_new("a", 0)
    assert [repeats.is_new("a", now) for now in (1, 2, 3)] == [False] * 3
    assert repeats.is_new("b", 4)
    assert repeats.due(WINDOW_NS - 1) == []
    (counted,) = repeats.due(WINDOW_NS)
    assert (counted.key, counted.more, counted.words) == ("a", 3, "repeated 3 times in 10 s")


def test_one_that_goes_on_is_one_count_a_window_and_new_again_after_a_quiet_one() -> None:
    repeats: Repeats[str] = Repeats()
    assert repeats.is_new("a", 0)
    for window in range(1, 4):
        assert not repeats.is_new("a", window * WINDOW_NS - 1)
        assert [each.more for each in repeats.due(window * WINDOW_NS)] == [1]
    assert repeats.due(5 * WINDOW_NS) == []
    assert repeats.is_new("a", 5 * WINDOW_NS)


def test_a_late_look_loses_no_count() -> None:
    repeats: Repeats[str] = Repeats()
    repeats.is_new("a", 0)
    repeats.is_new("a", 1)
    assert not repeats.is_new("a", 3 * WINDOW_NS)  # nobody has asked for what is due meanwhile
    assert [each.more for each in repeats.due(3 * WINDOW_NS)] == [2]


@given(st.lists(st.tuples(st.integers(0, 2 * KEYS_MAX), st.integers(0, WINDOW_NS // 3), st.booleans())))
def test_what_is_new_and_what_is_counted_is_all_that_there_was(steps: list[tuple[int, int, bool]]) -> None:
    repeats: Repeats[int] = Repeats()
    now = told = 0
    for key, pause, asks in steps:
        now += pause
        told += repeats.is_new(key, now)
        if asks:
            told += sum(each.more for each in repeats.due(now))
    assert told + sum(each.more for each in repeats.rest(now)) == len(steps)
    assert repeats.rest(now) == []
