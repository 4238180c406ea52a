"""Bursts of losses: their length shows in how unevenly losses fall."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.loss_bursts import FORGET_NS, SPACING_LEAST_NS, SPACING_MOST_NS, LossBursts

TICK = 100_000_000
SHARE = 0.02
COUNT_END = 1 << 32


def gilbert(chance: random.Random, burst: float) -> Iterator[bool]:
    """Segments that are lost: two in a hundred, so many in a row on average."""
    lost = False
    end = 1 / burst
    begin = SHARE / (1 - SHARE) * end
    while True:
        yield lost
        lost = chance.random() >= end if lost else chance.random() < begin


def one_by_one(chance: random.Random) -> Iterator[bool]:
    while True:
        yield chance.random() < SHARE


class Path:
    def __init__(self, losses: Iterator[bool], rate: int) -> None:
        self.losses = losses
        self.each = rate // 10
        self.bursts = LossBursts()
        self.lost = self.sent = self.now = 0

    def pass_seconds(self, seconds: float) -> int:
        for _ in range(round(10 * seconds)):
            self.now += TICK
            self.lost += sum(next(self.losses) for _ in range(self.each))
            self.sent += self.each
            self.bursts.update({1: (self.lost, self.sent % COUNT_END)}, self.now)
        return self.bursts.spacing_ns


def test_a_count_of_segments_that_begins_anew_is_no_burst() -> None:
    path = Path(one_by_one(random.Random(1)), 4000)
    path.sent = COUNT_END - 20_000
    for _ in range(100):
        assert path.pass_seconds(0.1) == 0
    assert path.sent > COUNT_END


@pytest.mark.parametrize("rate", [150, 1500, 4000])
@settings(max_examples=10)
@given(st.integers(0, 1 << 30))
def test_losses_one_by_one_call_for_no_spacing(rate: int, seed: int) -> None:
    spacings = [Path(one_by_one(random.Random(f"{seed} {turn}")), rate).pass_seconds(20) for turn in range(5)]
    assert spacings.count(0) >= 4  # chance may look like a burst, but seldom


@pytest.mark.parametrize(("rate", "most"), [(150, SPACING_MOST_NS), (4000, SPACING_MOST_NS - 1)])
def test_bursts_call_for_a_spacing_that_is_short_where_much_is_sent(rate: int, most: int) -> None:
    spacings = sorted(Path(gilbert(random.Random(seed), 4.0), rate).pass_seconds(60) for seed in range(9))
    assert SPACING_LEAST_NS <= spacings[4] <= most


def test_a_spacing_is_kept_although_copies_are_not_lost_together_any_more_and_given_up_in_the_end() -> None:
    path = Path(gilbert(random.Random(1), 4.0), 4000)
    spacing = path.pass_seconds(30)
    path.losses = one_by_one(random.Random(1))
    assert path.pass_seconds(60) >= spacing > 0
    assert path.pass_seconds(2 * FORGET_NS / 1e9) == 0


def test_a_connection_that_is_new_brings_no_history() -> None:
    bursts = LossBursts()
    for tick in range(1, 100):
        assert bursts.update({tick: (50 * tick, 100)}, tick * TICK) == 0


def test_where_nothing_is_sent_nothing_is_learnt() -> None:
    bursts = LossBursts()
    for tick in range(1, 100):
        assert bursts.update({}, tick * TICK) == 0
        assert bursts.update({1: (3, 100)}, tick * TICK + 1) == 0
