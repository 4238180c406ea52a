"""Shares of a ring: one owner alone gets half, several get equal parts, and there is room for one more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.ring_shares import CHARGE_MOST, RingShares


def fill(shares: RingShares, capacity: int, owners: list[int], charge: int) -> dict[int, int]:
    """The owners add in turn until none may. Slots of each."""
    taken = dict.fromkeys(owners, 0)
    free = capacity
    while free:
        may = [owner for owner in owners if shares.may_add(owner)]
        if not may:
            break
        for owner in may[:free]:
            if shares.may_add(owner):
                shares.add(owner, charge)
                taken[owner] += 1
                free -= 1
    return taken


def test_one_owner_gets_half_of_the_slots() -> None:
    assert fill(RingShares(32), 32, [1], 0) == {1: 16}


def test_two_owners_get_a_third_each() -> None:
    taken = fill(RingShares(30), 30, [1, 2], 0)
    assert taken == {1: 10, 2: 10}


def test_a_greedy_owner_leaves_an_eighth_of_a_ring_to_others_and_nothing_of_a_tiny_one() -> None:
    assert fill(RingShares(32, 7), 32, [1], 0) == {1: 28}
    assert fill(RingShares(4, 7), 4, [1], 0) == {1: 4}


def test_one_owner_gets_half_of_the_charge_and_one_slot_more_at_most() -> None:
    charge = CHARGE_MOST // 16
    assert fill(RingShares(1024), 1024, [1], charge) == {1: 8}


def test_a_newcomer_finds_room_behind_an_owner_that_has_its_share() -> None:
    shares = RingShares(32)
    fill(shares, 32, [1], CHARGE_MOST // 4)
    assert not shares.may_add(1)
    assert shares.may_add(2)


def test_an_owner_without_a_slot_may_have_one_however_much_others_have() -> None:
    shares = RingShares(32)
    shares.add(1, 2 * CHARGE_MOST)
    assert shares.may_add(2)


def test_a_slot_that_costs_more_than_all_may_leaves_others_a_quarter() -> None:
    shares = RingShares(1024)
    shares.add(1, 2 * CHARGE_MOST)
    assert not shares.may_add(1)
    assert fill(shares, 1024, [2], CHARGE_MOST // 16) == {2: 4}


def test_slots_that_are_finished_free_the_oldest_ones_share() -> None:
    shares = RingShares(8)
    for owner, charge in ((1, CHARGE_MOST // 4), (1, CHARGE_MOST // 4), (1, CHARGE_MOST // 4), (2, 0)):
        shares.add(owner, charge)
    assert not shares.may_add(1)
    shares.follow(6)  # two have been finished
    assert shares.may_add(1)


def test_slots_of_an_earlier_run_belong_to_nobody() -> None:
    shares = RingShares(8)
    shares.follow(4)
    shares.add(1, 0)
    shares.follow(5)  # two of the four
    assert shares.may_add(1)
    shares.follow(8)
    assert fill(shares, 8, [2], 0) == {2: 4}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 20), st.integers(0, 3)), max_size=200))
def test_no_sequence_loses_or_wins_a_share(turns: list[tuple[int, int, int]]) -> None:
    capacity = 16
    shares = RingShares(capacity)
    waiting = 0
    for owner, charge, finished in turns:
        finished = min(finished, waiting)
        waiting -= finished
        shares.follow(capacity - waiting)
        if waiting < capacity and shares.may_add(owner):
            shares.add(owner, charge)
            waiting += 1
    shares.follow(capacity)
    assert not shares._slots
    assert not shares._charges
    assert shares._charge_left == CHARGE_MOST
