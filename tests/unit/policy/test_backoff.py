"""Backoff: the first delay is the minimum, then delays double, with jitter, up to the maximum, for ever."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.backoff import Backoff

SEEDS = st.integers(0, 1 << 32)
BOUNDS = st.tuples(st.floats(0.001, 10), st.floats(1, 1000)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@given(BOUNDS, SEEDS)
def test_the_first_delay_is_the_least_one_exactly(bounds: tuple[float, float], seed: int) -> None:
    assert Backoff(*bounds, random.Random(seed)).next_delay() == bounds[0]


@given(BOUNDS, SEEDS, st.integers(2, 60))
def test_each_next_delay_is_between_half_and_all_of_the_double(
    bounds: tuple[float, float], seed: int, attempts: int
) -> None:
    minimum, maximum = bounds
    backoff = Backoff(minimum, maximum, random.Random(seed))
    delays = [backoff.next_delay() for _ in range(attempts)]
    for number, delay in enumerate(delays[1:], 1):
        base = min(maximum, minimum * 2 ** min(number, 30))
        assert base / 2 <= delay <= base


def test_it_goes_on_for_ever() -> None:
    backoff = Backoff(0.5, 30.0, random.Random(1))
    delays = [backoff.next_delay() for _ in range(5000)]
    assert max(delays) <= 30.0
    assert min(delays[7:]) >= 15.0


def test_after_a_success_it_begins_again() -> None:
    backoff = Backoff(0.5, 30.0, random.Random(1))
    for _ in range(10):
        backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 0.5
    assert backoff.next_delay() <= 1.0


def test_many_clients_that_fail_together_do_not_come_back_in_step() -> None:
    clients = [Backoff(0.5, 30.0, random.Random(seed)) for seed in range(100)]
    for _ in range(4):
        times = {round(backoff.next_delay(), 3) for backoff in clients}
    assert len(times) > 50


def test_without_a_source_of_random_numbers_each_one_differs() -> None:
    clients = [Backoff(1.0, 64.0) for _ in range(20)]
    for backoff in clients:
        backoff.next_delay()
    assert len({backoff.next_delay() for backoff in clients}) > 1
