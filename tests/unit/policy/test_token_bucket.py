"""The bucket: what goes through in the long run, in a burst and after a pause, whatever the takes are."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.token_bucket import BURST_LEAST, BURST_NS, TokenBucket
from pipeline.wire import framing

SECOND = 1_000_000_000
MBIT = 125_000
START = 3_600 * SECOND  # a machine has been up for a while
CLOCK_TICKS = 100  # ns of the rate that a burst holds at least: it bridges a clock of whole ns

RATES = st.integers(1_000, 10_000 * MBIT)
TAKES = st.lists(st.integers(1, 10_000), min_size=1, max_size=20)
PAUSES = st.lists(st.integers(0, SECOND), min_size=1, max_size=20)


def burst_of(bucket: TokenBucket, size: int = 1000) -> int:
    """Bytes that go through at once, in takes of `size`, until it is in debt."""
    total = 0
    while bucket.ready(START):
        bucket.take(size, START)
        total += size
    return total


@given(RATES, TAKES, st.integers(1, 5))
def test_who_always_has_something_gets_the_rate_whatever_the_takes_are(rate: int, takes: list[int], deep: int) -> None:
    burst = max(deep * max(takes), rate * CLOCK_TICKS // SECOND)
    bucket = TokenBucket(rate, burst)
    now, total = START, 0
    sizes = cycle(takes)
    while total < 110 * (burst + max(takes)):
        assert bucket.ready(now)
        size = next(sizes)
        bucket.take(size, now)
        total += size
        now = max(now, bucket.due())
    # all debts are paid at `now`, so the burst, which came on top, is within the 1 %
    assert total == pytest.approx(rate * (now - START) / SECOND, rel=0.01)


@given(RATES, TAKES, PAUSES, st.integers(1, 100_000))
def test_never_more_than_the_burst_and_the_rate_goes_through_beside_the_last_take(
    rate: int, takes: list[int], pauses: list[int], burst: int
) -> None:
    bucket = TokenBucket(rate, burst)
    now, total = START, 0
    for size, pause in zip(cycle(takes), 10 * pauses):
        while bucket.ready(now) and total < 1 << 24:
            assert total * SECOND <= burst * SECOND + rate * (now - START)
            bucket.take(size, now)
            total += size
        now += pause


@given(RATES, TAKES, st.integers(0, SECOND))
def test_due_is_the_first_moment_that_is_ready(rate: int, takes: list[int], pause: int) -> None:
    bucket = TokenBucket(rate, 1)
    for size in takes:
        bucket.take(size, START + pause)
    assert bucket.ready(bucket.due())
    assert not bucket.ready(bucket.due() - 1)


@given(RATES, st.lists(st.integers(1, 200), min_size=1, max_size=100))
def test_many_small_takes_count_as_one_large_one(rate: int, takes: list[int]) -> None:
    one, many = TokenBucket(rate), TokenBucket(rate)
    for size in takes:
        many.take(size, START)
    one.take(sum(takes), START)
    assert many.due() == one.due()


def test_a_take_beyond_the_bucket_is_a_debt_that_the_rate_pays() -> None:
    bucket = TokenBucket(MBIT, 1000)
    bucket.take(1000 + MBIT, START)
    assert bucket.due() == START + SECOND


def test_an_empty_bucket_is_no_debt() -> None:
    bucket = TokenBucket(MBIT, 1000)
    bucket.take(1000, START)
    assert bucket.ready(START)
    bucket.take(1, START)
    assert not bucket.ready(START)


def test_a_pause_of_any_length_saves_up_one_burst() -> None:
    bucket = TokenBucket(MBIT, 5000)
    bucket.take(5000, START - 3_000 * SECOND)
    assert burst_of(bucket) == 6000  # and the take that made the debt


@pytest.mark.parametrize(
    ("rate", "burst"),
    [
        (MBIT // 10, BURST_LEAST),
        (MBIT, BURST_LEAST),
        (1000 * MBIT, 1000 * MBIT * BURST_NS // SECOND),
    ],
)
def test_the_burst_is_50_ms_of_the_rate_and_two_blocks_at_least(rate: int, burst: int) -> None:
    assert burst < burst_of(TokenBucket(rate)) <= burst + 1000


def test_two_of_the_largest_blocks_fit_the_least_burst() -> None:
    assert BURST_LEAST >= 2 * framing.BLOCK_PAYLOAD_MAX


def test_a_rate_of_zero_is_no_limit() -> None:
    bucket = TokenBucket(0)
    for _ in range(1000):
        bucket.take(1 << 30, START)
    assert bucket.ready(START)
    assert bucket.due() <= START


def test_a_clock_that_was_read_a_moment_earlier_does_no_harm() -> None:
    in_step, out_of_step = TokenBucket(MBIT), TokenBucket(MBIT)
    for bucket, later in ((in_step, START), (out_of_step, START - 1_000_000)):
        bucket.take(BURST_LEAST, START)
        bucket.take(BURST_LEAST, later)
    assert out_of_step.due() == in_step.due()
