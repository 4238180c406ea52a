"""The budget for copies: what they cost is a small part of what the path carries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.copy_budget import FLOOR, MOST, PAUSE_NS, RESUME_BYTES, SAVED_BYTES, SHARE, CopyBudget

SECOND = 1_000_000_000
TICK = SECOND // 10


def paid(budget: CopyBudget, size: int, times: int, now: int) -> int:
    """Bytes that were paid for."""
    return sum(budget.pay(size, now) for _ in range(times))


def test_the_first_packets_of_a_session_are_paid_for() -> None:
    budget = CopyBudget(0, 0, 0)
    assert all(budget.pay(120, 0) for _ in range(100))


def test_a_light_flow_alone_is_copied_as_far_as_the_floor_goes() -> None:
    budget = CopyBudget(0, 0, 0)
    spent = 0
    for tick in range(1, 601):
        budget.refill(0, 0, tick * TICK)
        spent += paid(budget, 4000, 10, tick * TICK)
    assert FLOOR * 60 <= spent <= FLOOR * 60 + SAVED_BYTES


def test_beside_bulk_a_part_of_it_may_be_spent() -> None:
    rate = 10_000_000
    budget = CopyBudget(0, 0, 0)
    spent = 0
    for tick in range(1, 601):
        budget.refill(rate * tick // 10, 0, tick * TICK)
        spent += paid(budget, 120, 1000, tick * TICK)
    assert rate * 60 / SHARE * 0.9 <= spent <= rate * 60 / SHARE + SAVED_BYTES


def test_beside_very_much_bulk_there_is_a_limit() -> None:
    budget = CopyBudget(0, 0, 0)
    spent = 0
    for tick in range(1, 101):
        budget.refill(tick << 30, 0, tick * TICK)
        spent += paid(budget, 120, 1000, tick * TICK)
    assert spent <= MOST * 10 + SAVED_BYTES


def test_once_used_up_it_pays_for_nothing_until_a_part_of_it_is_there_again() -> None:
    budget = CopyBudget(0, 0, 0)
    paid(budget, 1000, 100, 0)
    turns = []
    for tick in range(1, 41):
        budget.refill(0, 0, tick * TICK)
        turns.append(bool(budget.pay(0, tick * TICK)))
    assert not any(turns[: RESUME_BYTES * 10 // FLOOR - 1])
    assert turns[-1]


def test_once_used_up_it_pays_again_only_after_a_pause_in_which_all_before_it_arrives() -> None:
    budget = CopyBudget(0, 0, 0)
    paid(budget, 1000, 100, 0)
    now = 10 * SECOND
    budget.refill(0, 0, now)
    assert budget.pay(100, now)
    paid(budget, 1000, 100, now)
    for step in range(1, 2000):
        budget.refill(0, 0, now + step * PAUSE_NS // 2)
        assert not budget.pay(100, now + step * PAUSE_NS // 2)
    assert budget.pay(100, now + (step + 2) * PAUSE_NS // 2)


def test_what_others_have_copied_is_paid_for_too() -> None:
    budget = CopyBudget(0, 1_000_000, 0)
    budget.refill(0, 1_000_000 + 10 * SAVED_BYTES, SECOND)
    assert not budget.pay(0, SECOND)


def test_a_worker_that_has_copied_nothing_for_long_owes_nothing_for_what_another_has_copied() -> None:
    busy, idle = CopyBudget(0, 0, 0), CopyBudget(0, 0, 0)
    spent = 0
    for tick in range(1, 36_001):
        busy.refill(0, 0, tick * TICK)
        spent += paid(busy, 720, 1, tick * TICK)
    idle.refill(0, spent, 36_000 * TICK)
    assert idle.pay(720, 36_000 * TICK)


@given(st.lists(st.tuples(st.integers(0, 20 * SECOND), st.integers(-1 << 40, 1 << 40), st.integers(0, 1 << 20))))
def test_it_never_pays_more_than_it_has_and_a_count_that_goes_back_does_no_harm(
    steps: list[tuple[int, int, int]],
) -> None:
    budget = CopyBudget(0, 0, 0)
    now = sent = spent = 0
    for pause, more, size in steps:
        now += pause
        sent += more
        budget.refill(sent, 0, now)
        spent += paid(budget, size, 3, now)
        assert spent <= SAVED_BYTES + MOST * now / SECOND
