"""The restart policy: when a dead worker is started again, and when the policy gives up."""

from __future__ import annotations

import signal

import pytest

from pipeline.policy.restart import BACKOFF_MAX, BACKOFF_MIN, EX_CONFIG, YOUNG_NS, GiveUp, RestartAt, RestartPolicy

SECOND = 1_000_000_000
KILLED = -signal.SIGKILL
LONG_LIVED = 10 * SECOND


def test_a_worker_that_had_worked_is_started_again_at_once() -> None:
    policy = RestartPolicy(5, 30)
    assert policy.died("tun-0", KILLED, LONG_LIVED, 1000) == RestartAt(1000)
    assert policy.died("tun-0", KILLED, YOUNG_NS, 2000) == RestartAt(2000)


def test_a_worker_that_dies_young_waits_longer_each_time() -> None:
    policy = RestartPolicy(100, 30)
    waits = []
    for _ in range(12):
        again = policy.died("tun-0", 1, 0, 0)
        assert isinstance(again, RestartAt)
        waits.append(again.at_ns / SECOND)
    assert waits[0] == BACKOFF_MIN
    for number, wait in enumerate(waits[1:], 1):
        base = min(BACKOFF_MAX, BACKOFF_MIN * 2**number)
        assert base / 2 <= wait <= base


def test_a_worker_that_had_worked_starts_its_backoff_anew() -> None:
    policy = RestartPolicy(100, 30)
    for _ in range(5):
        policy.died("tun-0", 1, YOUNG_NS - 1, 0)
    assert policy.died("tun-0", 1, LONG_LIVED, 0) == RestartAt(0)
    assert policy.died("tun-0", 1, 0, 0) == RestartAt(int(BACKOFF_MIN * SECOND))


def test_more_deaths_within_the_period_than_the_intensity_are_too_many() -> None:
    policy = RestartPolicy(3, 10)
    for number in range(3):
        assert isinstance(policy.died("tcp-0", KILLED, LONG_LIVED, number * SECOND), RestartAt)
    assert policy.died("tcp-0", KILLED, LONG_LIVED, 10 * SECOND) == GiveUp("tcp-0 has died 4 times in 10 s")


def test_deaths_older_than_the_period_are_forgotten() -> None:
    policy = RestartPolicy(3, 10)
    for number in range(50):
        assert isinstance(policy.died("tcp-0", KILLED, LONG_LIVED, number * 4 * SECOND), RestartAt)


def test_restarts_of_each_worker_are_counted_apart() -> None:
    policy = RestartPolicy(1, 10)
    assert isinstance(policy.died("tun-0", 1, LONG_LIVED, 0), RestartAt)
    assert isinstance(policy.died("tcp-0", 1, LONG_LIVED, 0), RestartAt)
    assert isinstance(policy.died("tun-0", 1, LONG_LIVED, 1), GiveUp)


def test_an_intensity_of_zero_allows_no_restart() -> None:
    assert isinstance(RestartPolicy(0, 10).died("tun-0", KILLED, LONG_LIVED, 0), GiveUp)


@pytest.mark.parametrize("lived", [0, LONG_LIVED])
def test_a_worker_that_refuses_its_configuration_is_not_started_again(lived: int) -> None:
    assert RestartPolicy(100, 1).died("tun-0", EX_CONFIG, lived, 0) == GiveUp("tun-0 refuses its configuration")


@pytest.mark.parametrize("status", [0, 1, 70, KILLED, -signal.SIGABRT, -signal.SIGSEGV])
def test_a_worker_that_ends_in_any_other_way_is_started_again(status: int) -> None:
    assert isinstance(RestartPolicy(1, 1).died("tun-0", status, 0, 0), RestartAt)


@pytest.mark.parametrize(("pause", "survives"), [(29.0 / 9, False), (29.0, True), (31.0, True)])
def test_a_worker_that_dies_as_often_as_it_may_goes_on_for_ever_and_one_more_ends_it(
    pause: float, survives: bool
) -> None:
    policy = RestartPolicy(9, 29.0)
    decisions = [policy.died("tun-0", KILLED, LONG_LIVED, int(number * pause * SECOND)) for number in range(1000)]
    assert all(isinstance(each, RestartAt) for each in decisions) is survives


def test_two_workers_that_die_in_turn_use_up_their_own_restarts_alone() -> None:
    policy = RestartPolicy(10, 30)
    decisions = [
        policy.died(f"{kind}-0", KILLED, LONG_LIVED, turn * SECOND) for turn in range(10) for kind in ("tun", "tcp")
    ]
    assert all(isinstance(each, RestartAt) for each in decisions)
    assert isinstance(policy.died("tun-0", KILLED, LONG_LIVED, 10 * SECOND), GiveUp)
