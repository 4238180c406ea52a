"""A path that carries small segments alone is found out by what its reports miss."""

from __future__ import annotations

import random

import pytest

from pipeline.policy.path_mtu import BASE
from workers.dgram.large_segments import LOST_LEAST, LOST_NS, LargeSegments

MS = 1_000_000
ROUND_NS = 10 * MS


class Sent:
    """Bursts of large and small segments in turn, and a report about each two of them."""

    def __init__(self) -> None:
        self.segments = LargeSegments(0, -1)
        self.now = self.highest = 0
        self.highest = -1

    def exchange(self, large: int, small: int, missing: int) -> bool:
        self.now += ROUND_NS
        for count, size in ((large, BASE + 1), (small, 100)):
            if count:
                self.highest += count
                self.segments.on_sent(self.highest, count, count * size, self.now)
        return self.segments.take(self.highest, missing, self.now)


def test_a_size_of_which_nothing_arrives_is_doubted_soon_and_once() -> None:
    sent = Sent()
    found = [sent.exchange(10, 1, 10) for _ in range(15)]
    assert found == [False] * (LOST_NS // ROUND_NS) + [True] + [False] * 4


def test_a_few_losses_are_no_reason() -> None:
    sent = Sent()
    assert not any(sent.exchange(1, 1, 1) for _ in range(LOST_LEAST - 1))


def test_one_large_segment_that_has_come_clears_the_size() -> None:
    sent = Sent()
    for number in range(100):
        assert not sent.exchange(10, 1, 9 if number % 8 == 7 else 10)


def test_small_segments_that_are_lost_say_nothing() -> None:
    sent = Sent()
    assert not any(sent.exchange(0, 20, 20) for _ in range(100))


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_losses_of_all_sizes_raise_no_doubt(loss: float) -> None:
    sent, chance = Sent(), random.Random(5)
    for _ in range(20_000):
        assert not sent.exchange(4, 2, sum(chance.random() < loss for _ in range(6)))
