"""The search for the size of datagrams, on paths in simulated time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.path_mtu import BASE, BASE_NS, MAX_PROBES, PROBE_NS, RAISE_NS, STEP, PathMtu

MOST = 1472
TICK = 10_000_000
SECOND = 1_000_000_000
RTT = 30_000_000


class Path:
    """Probes up to `carries` come back after a round trip, but for those that chance takes."""

    def __init__(self, carries: int, loss: float = 0.0, most: int = MOST, seed: int = 1) -> None:
        self.mtu = PathMtu(most)
        self.carries, self.loss = carries, loss
        self.chance = random.Random(seed)
        self.now = 1000 * SECOND
        self.under_way: list[tuple[int, int]] = []
        self.probes: list[int] = []
        self.sizes: list[int] = []

    def pass_ns(self, time: int) -> int:
        for _ in range(time // TICK):
            self.now += TICK
            while self.under_way and self.under_way[0][0] <= self.now:
                self.mtu.answered(self.under_way.pop(0)[1], self.now)
            size = self.mtu.due(self.now, RTT)
            if size:
                self.probes.append(size)
                if size <= self.carries and self.chance.random() >= self.loss:
                    self.under_way.append((self.now + RTT, size))
            self.sizes.append(self.mtu.size)
        return self.mtu.size


def test_a_path_that_carries_all_has_the_greatest_size_after_two_round_trips() -> None:
    path = Path(MOST)
    assert path.pass_ns(2 * RTT + 3 * TICK) == MOST
    assert path.probes == [BASE, MOST]


@settings(max_examples=60)
@given(carries=st.integers(BASE, 9000), most=st.integers(BASE, 9000))
def test_any_path_is_used_up_to_a_step(carries: int, most: int) -> None:
    path = Path(carries, most=most)
    size = path.pass_ns(40 * SECOND)
    greatest = min(carries, most)
    assert greatest - STEP <= size <= greatest
    assert all(each <= most for each in path.probes)


@settings(max_examples=40)
@given(carries=st.integers(BASE, MOST), loss=st.floats(0, 0.6), seed=st.integers(0, 1 << 30))
def test_loss_never_makes_a_size_good_that_the_path_does_not_carry(carries: int, loss: float, seed: int) -> None:
    path = Path(carries, loss, seed=seed)
    path.pass_ns(60 * SECOND)
    assert max(path.sizes) <= carries


def test_a_size_that_chance_has_taken_three_times_is_tried_again_after_ten_minutes() -> None:
    path = Path(MOST)
    path.pass_ns(3 * TICK)
    path.carries = BASE  # for the time of a search
    path.pass_ns(30 * SECOND)
    assert path.mtu.size == BASE
    path.carries = MOST
    assert path.pass_ns(RAISE_NS - 40 * SECOND) == BASE
    assert path.pass_ns(45 * SECOND) == MOST


def test_once_the_search_is_over_nothing_is_sent_until_it_begins_again() -> None:
    path = Path(1400)
    path.pass_ns(40 * SECOND)
    before = len(path.probes)
    path.pass_ns(RAISE_NS - 45 * SECOND)
    assert len(path.probes) == before


@pytest.mark.parametrize("carries", [0, BASE - 1])
def test_a_path_that_does_not_carry_the_base_carries_nothing_and_is_tried_now_and_then(carries: int) -> None:
    path = Path(carries)
    assert path.pass_ns(100 * SECOND) == 0
    assert set(path.probes) == {BASE}
    assert len(path.probes) <= MAX_PROBES + 1 + 100 * SECOND // BASE_NS
    path.carries = MOST
    assert path.pass_ns(BASE_NS + SECOND) == MOST


def test_three_probes_go_out_for_a_size_and_never_two_in_a_second() -> None:
    path = Path(1300)
    times = []
    for _ in range(3000):
        before = len(path.probes)
        path.pass_ns(TICK)
        times += [path.now] * (len(path.probes) - before)
    bad = [size for size in path.probes if size > 1300]
    assert all(bad.count(size) == MAX_PROBES for size in bad)
    unanswered = [at for at, size in zip(times, path.probes, strict=True) if size > 1300]
    assert all(later - earlier >= PROBE_NS for earlier, later in pairwise(unanswered))


def test_on_a_path_with_a_long_round_trip_an_answer_has_its_time() -> None:
    mtu = PathMtu(MOST)
    assert mtu.due(10, 2 * SECOND) == BASE
    assert mtu.due(10 + 6 * SECOND - 1, 2 * SECOND) == 0
    assert mtu.due(10 + 6 * SECOND, 2 * SECOND) == BASE


# -- a path that changes


def test_a_path_that_has_become_narrower_is_used_at_the_base_at_once_and_found_out_again() -> None:
    path = Path(MOST)
    path.pass_ns(SECOND)
    path.carries = 1350
    path.mtu.doubt(path.now)
    assert path.mtu.size == BASE
    size = path.pass_ns(30 * SECOND)
    assert 1350 - STEP <= size <= 1350


def test_a_doubt_about_a_path_that_has_not_changed_costs_a_round_trip() -> None:
    path = Path(1400)
    good = path.pass_ns(40 * SECOND)
    path.mtu.doubt(path.now)
    assert path.pass_ns(RTT + 3 * TICK) == good


def test_a_doubt_about_the_base_changes_nothing() -> None:
    path = Path(BASE)
    path.pass_ns(40 * SECOND)
    before = len(path.probes)
    path.mtu.doubt(path.now)
    assert path.pass_ns(SECOND) == BASE and len(path.probes) == before


def test_a_wider_path_is_used_after_the_next_search() -> None:
    path = Path(1300)
    path.pass_ns(40 * SECOND)
    path.carries = MOST
    path.pass_ns(RAISE_NS)
    assert path.mtu.size == MOST


# -- hints


def test_a_router_that_says_which_size_it_carries_saves_probes() -> None:
    without, path = Path(1420), Path(1420)
    path.pass_ns(RTT + 2 * TICK)
    assert path.probes[-1] == MOST
    path.mtu.too_big(1420)
    assert path.pass_ns(PROBE_NS + RTT + 3 * TICK) == 1420 > without.pass_ns(PROBE_NS + 2 * RTT + 5 * TICK)


def test_a_hint_is_tried_first_after_a_doubt() -> None:
    path = Path(MOST)
    path.pass_ns(SECOND)
    path.carries = 1380
    path.mtu.too_big(1380)
    path.mtu.doubt(path.now)
    assert path.pass_ns(RTT + 3 * TICK) == 1380


@settings(max_examples=40)
@given(st.lists(st.integers(0, 70000), min_size=1, max_size=20))
def test_forged_hints_neither_change_the_size_nor_bring_more_probes(sizes: list[int]) -> None:
    path, quiet = Path(MOST), Path(MOST)
    for end in (path, quiet):
        end.pass_ns(SECOND)
    for size in sizes:
        path.mtu.too_big(size)
        assert path.mtu.size == MOST
    path.pass_ns(60 * SECOND)
    quiet.pass_ns(60 * SECOND)
    assert path.probes == quiet.probes and path.mtu.size == MOST


def test_endless_forged_hints_during_the_search_bring_no_more_than_a_probe_a_second() -> None:
    path = Path(BASE)
    for turn in range(3000):
        path.pass_ns(TICK)
        path.mtu.too_big(1210 + turn % 200)
    assert len(path.probes) <= 32 and path.mtu.size == BASE


def test_answers_about_sizes_that_were_never_tried_are_ignored() -> None:
    mtu = PathMtu(MOST)
    for size in (0, BASE - 1, MOST + 1, 65535):
        mtu.answered(size, 5)
    assert mtu.size == 0


def test_what_the_own_interface_refuses_is_bad_without_further_probes() -> None:
    mtu = PathMtu(9000)
    assert mtu.due(0) == BASE
    mtu.answered(BASE, 1)
    refused = []
    while (size := mtu.due(1)) > 1500:
        refused.append(size)
        mtu.refused(1)
    assert refused[0] == 9000 and len(refused) < 10
    assert BASE < size <= 1500
    mtu.answered(size, 2)
    assert mtu.size == size


def test_a_refused_base_size_is_tried_as_ever() -> None:
    mtu = PathMtu(9000)
    assert mtu.due(0) == BASE
    mtu.refused(0)
    assert mtu.due(PROBE_NS - 1) == 0
    assert mtu.due(PROBE_NS) == BASE
