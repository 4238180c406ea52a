"""The limit on putting back what others remove."""

from __future__ import annotations

from pipeline.policy.put_back import PERIOD_NS, PUT_BACK_MAX, REST_NS, PutBackLimit

NOW = 10**12


def used_up() -> PutBackLimit:
    limit = PutBackLimit()
    assert all(limit.may(NOW + turn) for turn in range(PUT_BACK_MAX))
    return limit


def test_a_few_times_in_a_minute_are_put_back_and_then_there_is_a_rest() -> None:
    limit = used_up()
    assert not limit.may(NOW + PUT_BACK_MAX) and limit.is_resting(NOW + PUT_BACK_MAX)
    assert not limit.may(NOW + REST_NS - 1)


def test_the_rest_ends_once_and_all_begins_anew() -> None:
    limit = used_up()
    assert not limit.may(NOW)
    assert not limit.rest_has_ended(NOW + REST_NS - 1)
    assert limit.rest_has_ended(NOW + REST_NS) and not limit.rest_has_ended(NOW + REST_NS)
    assert all(limit.may(NOW + REST_NS) for _ in range(PUT_BACK_MAX)) and not limit.may(NOW + REST_NS)


def test_who_removes_seldom_never_causes_a_rest() -> None:
    limit = PutBackLimit()
    assert all(limit.may(NOW + turn * (PERIOD_NS // PUT_BACK_MAX + 1)) for turn in range(100))


def test_a_reset_ends_the_rest() -> None:
    limit = used_up()
    assert not limit.may(NOW)
    limit.reset()
    assert limit.may(NOW)


def test_a_reset_before_a_rest_forgets_what_was_put_back() -> None:
    limit = used_up()
    limit.reset()
    assert all(limit.may(NOW) for _ in range(PUT_BACK_MAX)) and not limit.may(NOW)
