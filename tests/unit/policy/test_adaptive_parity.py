"""Adaptive parity follows what the kernel does about loss: up at once, down in time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.adaptive_parity import (
    CALM_NS,
    LOSS_LEAST,
    LOSS_SEGMENTS,
    LOSS_WINDOW,
    REMEMBER_NS,
    STALL_NS,
    AdaptiveParity,
    LossSample,
)

TICK = 100_000_000
MOST = 3
COUNT_END = 1 << 32


class Path:
    """One connection that sends so many segments a tick, some of them again."""

    def __init__(self, serial: int = 1, most: int = MOST) -> None:
        self.serial = serial
        self.sent = self.resent = 0
        self.adaptive = AdaptiveParity(most, 10)
        self.now = 0

    def tick(
        self,
        times: int = 1,
        sent: int = 400,
        resent: int = 0,
        timeouts: int = 0,
        ended: int = 0,
        unread: bool = False,
    ) -> int:
        for _ in range(times):
            self.now += TICK
            self.sent += sent
            self.resent += resent
            sample = LossSample(self.serial, timeouts, self.resent, self.sent % COUNT_END, unread)
            self.adaptive.update([sample], ended, self.now)
        return self.adaptive.parity


def test_a_clean_path_calls_for_no_parity() -> None:
    assert Path().tick(100) == 0


def test_a_count_of_segments_that_begins_anew_is_no_loss() -> None:
    path = Path()
    path.sent = COUNT_END - 25_500
    path.tick(20, sent=1000)
    path.tick(1, sent=1000, resent=2)
    for _ in range(20):
        assert path.tick(1, sent=1000) == 0
    assert path.sent > COUNT_END
    assert path.tick(LOSS_WINDOW, sent=400, resent=8), "what is lost afterwards shows as before"


@pytest.mark.parametrize(
    ("resent", "parity", "copies"), [(1, 0, 0), (2, 1, 1), (8, 2, 2), (16, MOST, 2), (40, MOST, 2), (400, MOST, 2)]
)
def test_parity_has_the_size_of_the_losses_once_they_are_known_well(resent: int, parity: int, copies: int) -> None:
    """Of 400 segments. At first they call for all."""
    path = Path()
    path.tick(20)
    assert path.tick(11, resent=resent) == (MOST if parity else 0)
    assert path.tick(CALM_NS // TICK + LOSS_WINDOW, resent=resent) == parity
    assert path.adaptive.copies == copies


def test_what_a_congestion_control_loses_in_probing_calls_for_none() -> None:
    path = Path()
    path.tick(10)
    assert path.tick(1, resent=10) == 0  # 10 of 4000 in that second
    assert path.tick(30) == 0


@pytest.mark.parametrize("most", [0, 1])
def test_a_setting_without_parity_means_no_copies_and_one_shard_means_one(most: int) -> None:
    path = Path(most=most)
    path.tick(20)
    for losses in ({"resent": 2}, {"resent": 100}, {"timeouts": 1}):
        assert path.tick(20, **losses) == most
        assert path.adaptive.copies <= max(most, 1)
    assert len(path.adaptive._copied_at) == len(path.adaptive._called_at) == most


def test_one_loss_of_a_light_flow_calls_for_all_once_it_is_certain() -> None:
    path = Path()
    path.tick(20, sent=5)
    assert path.tick(1, sent=5, resent=1) == 0
    assert path.tick(1, sent=5) == MOST


def test_a_timeout_in_progress_calls_for_all_at_once() -> None:
    path = Path()
    path.tick(5)
    assert path.tick(1, sent=0, timeouts=1) == MOST


def test_a_connection_that_ended_for_want_of_an_answer_calls_for_all_at_once() -> None:
    path = Path()
    path.tick(5)
    assert path.tick(1, ended=1) == MOST


@pytest.mark.parametrize(
    ("sign", "lasts"), [({"ended": 1}, STALL_NS), ({"timeouts": 1}, STALL_NS), ({"resent": 800}, CALM_NS)]
)
def test_a_false_alarm_is_over_in_seconds(sign: dict[str, int], lasts: int) -> None:
    path = Path()
    path.tick(5)
    path.tick(1, **sign)
    assert path.tick(5) == MOST
    assert path.tick(lasts // TICK - 6) == MOST
    assert path.tick(5 + LOSS_WINDOW) == 0


def test_a_connection_that_goes_on_standing_still_calls_for_all_until_it_ends() -> None:
    path = Path()
    path.tick(5)
    for _ in range(60):
        assert path.tick(1, timeouts=1) == MOST


def test_after_a_quiet_time_there_is_as_much_as_was_called_for_meanwhile() -> None:
    path = Path()
    path.tick(5)
    assert path.tick(11, resent=40) == MOST
    assert path.tick(CALM_NS // TICK + 12, resent=2) == 1
    assert path.tick(20, resent=2) == 1


def test_a_segment_that_had_arrived_is_no_loss_although_the_news_of_that_comes_late() -> None:
    path = Path()
    path.tick(20, sent=5)
    path.tick(1, sent=5, resent=1)
    assert path.tick(1, sent=5, resent=-1) == 0
    assert path.tick(50, sent=5) == path.adaptive.copies == 0


def test_losses_of_connections_that_have_ended_since_are_none() -> None:
    path = Path()
    path.tick(20, sent=5)
    path.tick(1, sent=5, resent=3)
    path.serial, path.sent = 2, 0
    assert path.tick(20, sent=5) == 0


def test_a_few_percent_on_a_path_with_little_to_send_are_seen_and_are_over_when_enough_has_arrived() -> None:
    path = Path()
    for _ in range(60):  # a second each, 2 %
        path.tick(9, sent=15)
        path.tick(1, sent=15, resent=3)
    assert path.adaptive.parity == 2
    seconds = 0
    while path.tick(10, sent=15):
        seconds += 1
    assert LOSS_SEGMENTS < 150 * seconds < 4 * LOSS_SEGMENTS


def test_an_idle_path_calls_for_nothing_and_what_was_known_of_it_is_there_again_with_its_first_segments() -> None:
    path = Path()
    known = path.tick(20, sent=15, resent=1)
    assert known > 0
    assert path.tick(CALM_NS // TICK + LOSS_WINDOW + 2, sent=0) == 0
    assert path.tick(1, sent=15) == known


def test_a_path_that_has_lost_packets_gets_copies_of_light_packets_for_long() -> None:
    path = Path()
    path.tick(20, resent=8)
    assert path.adaptive.copies == 2
    assert path.tick(100) == 0
    assert path.adaptive.copies == 1
    path.tick(REMEMBER_NS // TICK)
    assert path.adaptive.copies == 0


def test_an_alarm_without_losses_is_not_remembered() -> None:
    path = Path()
    path.tick(5)
    path.tick(1, timeouts=1)
    assert path.adaptive.copies == 2
    path.tick(2 * CALM_NS // TICK)
    assert path.adaptive.copies == 0


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(-3, 20), st.integers(0, 1)), max_size=200))
def test_whatever_the_kernel_says_parity_is_over_some_seconds_after_the_last_loss(
    updates: list[tuple[int, int, int]],
) -> None:
    path = Path()
    for sent, resent, timeouts in updates:
        path.tick(1, sent, resent, timeouts)
        assert 0 <= path.adaptive.parity <= MOST
        assert path.adaptive.copies >= min(path.adaptive.parity, 2)
    quiet = 2 * LOSS_WINDOW + CALM_NS // TICK
    assert path.tick(quiet, sent=2 * LOSS_SEGMENTS // LOSS_WINDOW) == 0


@settings(max_examples=30)
@given(st.integers(0, 1 << 30))
def test_losses_one_by_one_below_the_least_share_never_call_for_parity_in_bulk(seed: int) -> None:
    chance = random.Random(seed)
    path = Path()
    for _ in range(300):
        lost = sum(chance.random() < LOSS_LEAST / 4 for _ in range(1000))
        assert path.tick(1, sent=1000, resent=lost) == 0


def test_trouble_that_goes_on_keeps_it_up() -> None:
    path = Path()
    path.tick(LOSS_WINDOW + 1, resent=40)
    for _ in range(30):
        assert path.tick(LOSS_WINDOW, resent=40) == MOST


def test_a_connection_that_is_new_brings_no_history() -> None:
    path = Path()
    path.tick(10)
    path.serial, path.resent = 2, 1000
    assert path.tick(10) == 0


def test_a_connection_that_the_other_end_does_not_read_calls_for_none() -> None:
    path = Path()
    path.tick(20)
    assert path.tick(10, sent=3, resent=1, timeouts=1, unread=True) == 0
    assert path.tick(10) == 0  # what was sent again meanwhile is not found out later
