"""How dial slots are shared out among uplinks."""

from __future__ import annotations

from itertools import product

import pytest

from pipeline.policy.uplink_share import uplink_of


def test_the_slots_of_each_class_take_the_uplinks_in_turn() -> None:
    assert [uplink_of(index, 5, 1, 2) for index in range(8)] == [0, 1, 0, 1, 0, 0, 1, 0]
    assert [uplink_of(index, 5, 1, 3) for index in range(8)] == [0, 1, 2, 0, 1, 0, 1, 2]


@pytest.mark.parametrize(("lanes", "count"), [*product((1, 2, 3, 4, 8), (2, 3, 4))])
def test_as_many_slots_as_uplinks_reach_them_all(lanes: int, count: int) -> None:
    for first in (0, count):  # those for bulk, then those for light flows
        assert sorted(uplink_of(first + i, count, lanes, count) for i in range(count)) == [*range(count)]


@pytest.mark.parametrize(("lanes", "count"), [*product((1, 2, 3, 4, 8), (2, 3, 4))])
def test_a_lane_with_as_many_slots_as_uplinks_has_one_on_each(lanes: int, count: int) -> None:
    slots = lanes * count
    for lane in range(lanes):
        assert sorted(uplink_of(index, slots, lanes, count) for index in range(lane, slots, lanes)) == [*range(count)]
