"""Which lane gets what: a flow whose answers pull it into their lane stays there, and a hub's lanes are all in use."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from pipeline.policy.lane_pairs import own_lane, told_lane


def there(lane: int, peer: int, ours: int, theirs: int) -> int:
    """The lane of the client for what the server's lane sends. A client has one peer, of index 0."""
    return own_lane(told_lane(lane, peer, ours), 0, theirs)


def back(lane: int, peer: int, ours: int, theirs: int) -> int:
    """The lane of the server for what the client's lane sends."""
    return own_lane(told_lane(lane, 0, theirs), peer, ours)


@pytest.mark.parametrize(("ours", "theirs"), [*product(range(1, 9), repeat=2)])
def test_after_one_answer_a_flow_changes_its_lane_no_more(ours: int, theirs: int) -> None:
    for peer, lane in product(range(10), range(ours)):
        once = back(there(lane, peer, ours, theirs), peer, ours, theirs)
        assert back(there(once, peer, ours, theirs), peer, ours, theirs) == once


@pytest.mark.parametrize(("ours", "theirs"), [*product(range(1, 9), repeat=2)])
def test_as_many_pairs_of_lanes_are_in_use_as_the_end_with_fewer_lanes_has(ours: int, theirs: int) -> None:
    for peer in range(10):
        used = {back(lane, peer, ours, theirs) for lane in range(theirs)}
        assert len(used) == min(ours, theirs)


def test_clients_with_one_lane_use_all_lanes_of_a_hub_alike() -> None:
    used = Counter(back(0, peer, 4, 1) for peer in range(12))
    assert used == {0: 3, 1: 3, 2: 3, 3: 3}


def test_equal_numbers_of_lanes_without_a_turn_are_lanes_of_equal_numbers() -> None:
    assert [(told_lane(lane, 0, 3), own_lane(lane, 0, 3)) for lane in range(3)] == [(0, 0), (1, 1), (2, 2)]


def test_a_lane_that_no_end_has_is_told_in_vain() -> None:
    assert {own_lane(told, 3, 5) for told in range(256)} == set(range(5))
