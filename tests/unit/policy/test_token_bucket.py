"""The token bucket: what passes in the long run, in a burst and after a pause, whatever the amounts are."""

from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.token_bucket import BURST_LEAST, BURST_NS, SharedBucket, TokenBucket
from pipeline.wire import framing

SECOND = 1_000_000_000
MBIT = 125_000
START = 3_600 * SECOND  # a machine has been up for a while
CLOCK_TICKS = 100  # ns of the rate that a burst holds at least: it bridges a clock of whole ns

RATES = st.integers(1_000, 10_000 * MBIT)
AMOUNTS = st.lists(st.integers(1, 10_000), min_size=1, max_size=20)
PAUSES = st.lists(st.integers(0, SECOND), min_size=1, max_size=20)


def burst_of(bucket: TokenBucket, size: int = 1000) -> int:
    """Bytes that pass at once, `size` at a time, until the bucket is in debt."""
    total = 0
    while bucket.in_credit(START):
        bucket.spend(size, START)
        total += size
    return total


@given(RATES, AMOUNTS, st.integers(1, 5))
def test_a_sender_that_always_has_something_gets_the_rate_whatever_the_amounts_are(
    rate: int, amounts: list[int], deep: int
) -> None:
    burst = max(deep * max(amounts), rate * CLOCK_TICKS // SECOND)
    bucket = TokenBucket(rate, burst)
    now, total = START, 0
    sizes = cycle(amounts)
    while total < 110 * (burst + max(amounts)):
        assert bucket.in_credit(now)
        size = next(sizes)
        bucket.spend(size, now)
        total += size
        now = max(now, bucket.credit_at())
    # all debts are paid at `now`, so the burst, which came on top, is within the 1 %
    assert total == pytest.approx(rate * (now - START) / SECOND, rel=0.01)


@given(RATES, AMOUNTS, PAUSES, st.integers(1, 100_000))
def test_never_more_than_the_burst_and_the_rate_passes_beside_the_last_amount(
    rate: int, amounts: list[int], pauses: list[int], burst: int
) -> None:
    bucket = TokenBucket(rate, burst)
    now, total = START, 0
    for size, pause in zip(cycle(amounts), 10 * pauses):
        while bucket.in_credit(now) and total < 1 << 24:
            assert total * SECOND <= burst * SECOND + rate * (now - START)
            bucket.spend(size, now)
            total += size
        now += pause


@given(RATES, AMOUNTS, st.integers(0, SECOND))
def test_credit_at_is_the_first_moment_that_is_in_credit(rate: int, amounts: list[int], pause: int) -> None:
    bucket = TokenBucket(rate, 1)
    for size in amounts:
        bucket.spend(size, START + pause)
    assert bucket.in_credit(bucket.credit_at())
    assert not bucket.in_credit(bucket.credit_at() - 1)


@given(RATES, st.lists(st.integers(1, 200), min_size=1, max_size=100))
def test_many_small_amounts_count_as_one_large_one(rate: int, amounts: list[int]) -> None:
    one, many = TokenBucket(rate), TokenBucket(rate)
    for size in amounts:
        many.spend(size, START)
    one.spend(sum(amounts), START)
    assert many.credit_at() == one.credit_at()


def test_bytes_beyond_the_level_are_a_debt_that_the_rate_pays() -> None:
    bucket = TokenBucket(MBIT, 1000)
    bucket.spend(1000 + MBIT, START)
    assert bucket.credit_at() == START + SECOND


def test_an_empty_bucket_is_no_debt() -> None:
    bucket = TokenBucket(MBIT, 1000)
    bucket.spend(1000, START)
    assert bucket.in_credit(START)
    bucket.spend(1, START)
    assert not bucket.in_credit(START)


def test_a_pause_of_any_length_saves_up_one_burst() -> None:
    bucket = TokenBucket(MBIT, 5000)
    bucket.spend(5000, START - 3_000 * SECOND)
    assert burst_of(bucket) == 6000  # and the amount that made the debt


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
        bucket.spend(1 << 30, START)
    assert bucket.in_credit(START)
    assert bucket.credit_at() <= START


def test_a_clock_that_was_read_a_moment_earlier_does_no_harm() -> None:
    in_step, out_of_step = TokenBucket(MBIT), TokenBucket(MBIT)
    for bucket, later in ((in_step, START), (out_of_step, START - 1_000_000)):
        bucket.spend(BURST_LEAST, START)
        bucket.spend(BURST_LEAST, later)
    assert out_of_step.credit_at() == in_step.credit_at()


# -- shared by several workers


@given(
    rate=RATES,
    spent=st.lists(st.tuples(st.booleans(), st.integers(1, 100_000), st.integers(0, SECOND // 10)), max_size=50),
)
def test_two_workers_that_share_a_limit_each_count_what_both_have_passed(
    rate: int, spent: list[tuple[bool, int, int]]
) -> None:
    alone, ours = TokenBucket(rate), SharedBucket()
    elsewhere, now = 0, START
    ours.update(rate, elsewhere, now)
    for is_ours, size, pause in spent:
        now += pause
        alone.spend(size, now)
        if is_ours:
            ours.spend(size, now)
        else:
            elsewhere += size
        ours.update(rate, elsewhere, now)
    assert ours.credit_at() == alone.credit_at()


def test_a_shared_bucket_has_no_limit_before_its_first_rate() -> None:
    bucket = SharedBucket()
    bucket.spend(1 << 40, START)
    assert bucket.in_credit(START)


def test_bytes_that_passed_elsewhere_before_the_rate_was_set_do_not_count() -> None:
    bucket = SharedBucket()
    bucket.update(0, 1 << 40, START)
    bucket.update(MBIT, 1 << 41, START)
    assert burst_of(bucket) == burst_of(TokenBucket(MBIT))


def test_the_first_rate_begins_with_a_full_bucket_and_a_change_keeps_the_debt() -> None:
    bucket = SharedBucket()
    bucket.update(MBIT, 0, START)
    assert burst_of(bucket) == burst_of(TokenBucket(MBIT))
    bucket.spend(1 << 30, START)
    for rate in (MBIT, 2 * MBIT, MBIT // 2):
        bucket.update(rate, 0, START)
        assert not bucket.in_credit(START)


def test_a_rate_that_changes_all_the_time_is_a_limit_too() -> None:
    bucket = SharedBucket()
    passed, step = 0, SECOND // 10
    for at in range(100):
        now = START + at * step
        bucket.update(MBIT + at % 2, 0, now)
        while bucket.in_credit(now):
            bucket.spend(1000, now)
            passed += 1000
    assert passed <= 10 * (MBIT + 1) + BURST_LEAST + 1000


def test_a_lower_rate_leaves_no_more_than_its_own_burst() -> None:
    bucket = SharedBucket()
    bucket.update(1000 * MBIT, 0, START)
    bucket.update(MBIT, 0, START)
    assert burst_of(bucket) == burst_of(TokenBucket(MBIT))


def test_a_limit_can_be_lifted() -> None:
    bucket = SharedBucket()
    bucket.update(MBIT, 0, START)
    bucket.spend(1 << 30, START)
    bucket.update(0, 0, START)
    assert bucket.in_credit(START)
