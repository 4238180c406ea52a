"""How long a NAT keeps a way open, in simulated time, with NATs that shut it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.nat_keepalive import HOLD_MOST_NS, HOLD_NS, LATE_NS, SECOND, STEPS_S, NatKeepalive

TICK = SECOND // 2
RTT = TICK // 2
HOUR = 3600 * SECOND


class Nat:
    """A client behind a NAT that forgets an idle way after `keeps`, and a server that answers when it was asked to."""

    def __init__(self, keeps_s: float, loss: float = 0.0) -> None:
        self.client = NatKeepalive()
        self.keeps = keeps_s * SECOND
        self.loss = loss
        self.chance = random.Random(1)
        self.now = 1000 * HOUR
        self.open_until = 0.0
        self.answers: list[tuple[int, int]] = []
        self.probes = 0
        self.shut = 0  # time in which nothing could have come in

    def send(self) -> None:
        self.client.sent(self.now)
        self.open_until = self.now + self.keeps

    def pass_ns(self, time: int, traffic: bool = False) -> int:
        for _ in range(time // TICK):
            self.now += TICK
            self.shut += TICK * (self.now >= self.open_until)
            while self.answers and self.answers[0][0] <= self.now:
                at, wait = self.answers.pop(0)
                if at < self.open_until and self.chance.random() >= self.loss:
                    self.client.answered(wait, self.now)
            wait = self.client.due(self.now, RTT)
            if wait:
                self.probes += 1
                self.open_until = self.now + self.keeps
                self.answers.append((self.now + wait * SECOND + RTT, wait))
                self.answers.sort()
            elif traffic:
                self.send()
        return self.client.idle_s


def test_the_first_answer_is_asked_for_after_fifteen_seconds_and_then_for_ever_later_ones() -> None:
    nat = Nat(1000)
    assert nat.pass_ns(14 * SECOND) == 0
    proved = [nat.pass_ns(SECOND) for _ in range(600)]
    assert sorted(set(proved) - {0}) == list(STEPS_S)
    assert proved[-1] == STEPS_S[-1]


@settings(max_examples=30)
@given(st.floats(STEPS_S[0] + 2, 200))
def test_the_greatest_step_is_found_for_which_the_nat_keeps_the_way_open(keeps: float) -> None:
    nat = Nat(keeps)
    best = max(step for step in STEPS_S if step + 1 <= keeps)
    assert nat.pass_ns(HOUR // 2) in {best, *(step for step in STEPS_S if best < step < keeps)}


def test_a_missing_answer_opens_the_way_again_at_once_and_takes_back_the_interval() -> None:
    nat = Nat(40)
    seen = [nat.pass_ns(TICK) for _ in range(400)]
    at = next(index for index in range(1, 400) if seen[index] < seen[index - 1])
    assert (seen[at - 1], seen[at]) == (30, 0)
    assert nat.shut <= 45 * SECOND - nat.keeps + LATE_NS + 3 * TICK


def test_a_step_that_has_failed_is_not_tried_for_an_hour_and_then_for_twice_as_long() -> None:
    nat = Nat(40)
    nat.pass_ns(HOLD_NS)
    first = nat.shut
    assert first > 0
    nat.pass_ns(HOLD_NS)
    second = nat.shut
    assert second > first
    nat.pass_ns(HOLD_NS)
    assert nat.shut == second
    nat.pass_ns(HOLD_NS)
    assert nat.shut > second


def test_in_a_week_behind_a_nat_that_forgets_early_the_way_is_shut_for_hardly_any_time() -> None:
    nat = Nat(40)
    nat.pass_ns(7 * 24 * HOUR)
    assert nat.shut < 12 * 10 * SECOND
    assert nat.client._hold_ns == HOLD_MOST_NS


def test_a_nat_that_keeps_ways_open_for_longer_than_before_is_found_out() -> None:
    nat = Nat(40)
    assert nat.pass_ns(HOUR // 2) == 30
    nat.keeps = 1000 * SECOND
    assert nat.pass_ns(HOUR) == STEPS_S[-1]


def test_one_probe_goes_out_in_each_interval_and_none_under_load() -> None:
    nat = Nat(1000)
    nat.pass_ns(HOUR // 2)
    before = nat.probes
    nat.pass_ns(HOUR)
    assert nat.probes - before <= 3600 / STEPS_S[-1] + 1
    before = nat.probes
    nat.pass_ns(HOUR, traffic=True)
    assert nat.probes - before <= 1


def test_an_answer_proves_nothing_if_something_else_was_sent_meanwhile() -> None:
    nat = Nat(40)
    nat.pass_ns(2 * SECOND)
    for _ in range(100):
        nat.pass_ns(SECOND)
        nat.send()
    assert nat.client.idle_s == 0
    nat.pass_ns(HOUR // 2)
    assert nat.client.idle_s == 30


def test_after_traffic_has_ended_the_next_probe_comes_before_the_nat_forgets() -> None:
    nat = Nat(31)
    nat.pass_ns(HOUR // 2)
    assert nat.client.idle_s == 30
    nat.pass_ns(200 * SECOND, traffic=True)
    shut = nat.shut
    nat.pass_ns(10 * 60 * SECOND)
    assert nat.shut == shut


def test_after_traffic_has_ended_no_probe_comes_before_the_proved_time() -> None:
    nat = Nat(1000)
    nat.pass_ns(HOUR // 2)
    nat.pass_ns(300 * SECOND, traffic=True)
    before = nat.probes
    nat.pass_ns((STEPS_S[-1] - 2) * SECOND)
    assert nat.probes == before
    nat.pass_ns(3 * SECOND)
    assert nat.probes == before + 1


def test_a_missing_answer_while_something_else_was_sent_takes_nothing_back() -> None:
    nat = Nat(1000)
    nat.pass_ns(HOUR // 2)
    before, nat.loss = nat.probes, 1.0
    nat.pass_ns(300 * SECOND, traffic=True)
    assert nat.client.idle_s == STEPS_S[-1]
    assert nat.probes == before


def test_a_path_that_loses_some_answers_still_keeps_the_way_open() -> None:
    nat = Nat(125, loss=0.05)
    nat.pass_ns(24 * HOUR)
    assert nat.shut < TICK * 3
    assert nat.probes <= 24 * 3600 / STEPS_S[0]


@pytest.mark.parametrize("keeps", [5, 0.1])
def test_a_way_that_is_shut_sooner_than_any_step_is_probed_at_the_first_step(keeps: float) -> None:
    nat = Nat(keeps)
    assert nat.pass_ns(HOUR) == 0
    assert nat.probes <= 3600 / STEPS_S[0]


def test_an_answer_that_comes_too_early_or_to_another_probe_is_ignored() -> None:
    client = NatKeepalive()
    client.answered(15, 5)
    assert client.due(10) == 15
    client.answered(15, 10 + 15 * SECOND - 1)
    client.answered(20, 10 + 20 * SECOND)
    assert client.idle_s == 0
    client.answered(15, 10 + 15 * SECOND)
    assert client.idle_s == 15
