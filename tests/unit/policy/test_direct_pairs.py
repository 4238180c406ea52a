"""Which clients of a hub get a direct path, and when it is tried again."""

from __future__ import annotations

import pytest

from pipeline.policy import direct_pairs
from pipeline.policy.direct_pairs import (
    AGAIN_NS,
    LOOKS,
    LOOKS_NS,
    PARTNERS_MAX,
    RETRY_MOST_NS,
    RETRY_NS,
    SECOND,
    SEEN_MOST,
    STEADY_NS,
    Attempts,
    Demand,
    Facts,
    key_of,
    why_relayed,
)

ONE = Facts("one", takes_notes=True, has_path=True, has_rules=False, has_rate=False, is_told_apart=True)
TWO = ONE._replace(name="two")
NAMES = frozenset(("one", "two"))


def test_two_clients_with_nothing_in_the_way_may_be_a_pair() -> None:
    assert why_relayed(ONE, TWO) == ""
    assert why_relayed(ONE._replace(partners=PARTNERS_MAX - 1), TWO) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"takes_notes": False}, {"has_path": False}, {"has_rules": True}, {"has_rate": True}, {"is_told_apart": False},
        {"partners": PARTNERS_MAX},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_hinders_either_of_them_is_said_with_its_name(change: dict[str, object]) -> None:
    assert "two" in why_relayed(ONE, TWO._replace(**change))
    assert "one" in why_relayed(ONE._replace(**change), TWO)


def test_a_pair_is_wanted_once_it_has_shown_in_some_looks_within_the_time() -> None:
    demand, key = Demand(), key_of(9, 5)
    assert key == (5, 9) == key_of(5, 9)
    assert [demand.look([key, key], look * SECOND) for look in range(LOOKS)] == [[]] * (LOOKS - 1) + [[key]]
    assert demand.look([key], LOOKS * SECOND) == [key]


def test_packets_far_apart_in_time_make_no_pair() -> None:
    demand = Demand()
    for look in range(20):
        assert demand.look([(1, 2)], look * LOOKS_NS) == []


def test_the_pairs_that_are_counted_are_bounded_and_forgotten_in_time() -> None:
    demand = Demand()
    demand.look([(1, other) for other in range(2, 5 * SEEN_MOST)], 0)
    assert len(demand._seen) == SEEN_MOST
    demand.look([], 2 * LOOKS_NS)
    assert not demand._seen


def test_a_pair_that_fails_is_tried_again_after_longer_and_longer_times() -> None:
    attempts, now, pauses = Attempts(), 0, []
    for _ in range(10):
        assert attempts.may_try(NAMES, now)
        attempts.ended(NAMES, 0, now)
        began = now
        while not attempts.may_try(NAMES, now):
            now += SECOND
        pauses.append(now - began)
    assert pauses[0] == RETRY_NS and pauses[1] == 2 * RETRY_NS and pauses[-1] == RETRY_MOST_NS == max(pauses)


def test_a_path_that_flaps_is_tried_less_and_less_and_one_that_was_steady_at_once() -> None:
    attempts = Attempts()
    for _ in range(5):
        attempts.ended(NAMES, STEADY_NS - 1, 0)
    assert not attempts.may_try(NAMES, 8 * RETRY_NS)
    attempts.ended(NAMES, STEADY_NS, 0)
    assert attempts.may_try(NAMES, AGAIN_NS) and not attempts.may_try(NAMES, AGAIN_NS - 1)
    attempts.ended(NAMES, 0, 0)
    assert attempts.may_try(NAMES, RETRY_NS) and not attempts.may_try(NAMES, RETRY_NS - 1)


def test_the_pairs_that_are_remembered_are_bounded() -> None:
    attempts = Attempts()
    for number in range(2 * direct_pairs.ATTEMPTS_MOST):
        attempts.ended(frozenset((str(number), "one")), 0, 0)
    assert len(attempts._known) == direct_pairs.ATTEMPTS_MOST
