"""When a sender goes to its next epoch."""

from __future__ import annotations

import pytest

from pipeline.policy.epochs import EPOCH_BYTES, EPOCH_NS, EPOCH_NS_MIN, SendEpoch

BEGIN, SENT = 7_000_000_000, 500


def epoch(acknowledged_at: int | None = BEGIN) -> SendEpoch:
    made = SendEpoch(BEGIN, SENT)
    if acknowledged_at is not None:
        assert not made.is_over(acknowledged_at, SENT, True)
    return made


@pytest.mark.parametrize(
    ("age", "sent", "over"),
    [
        (EPOCH_NS, 0, True),
        (EPOCH_NS - 1, 0, False),
        (EPOCH_NS_MIN, EPOCH_BYTES, True),
        (EPOCH_NS_MIN - 1, EPOCH_BYTES, False),
        (EPOCH_NS - 1, EPOCH_BYTES - 1, False),
    ],
)
def test_an_epoch_is_over_after_enough_bytes_or_time(age: int, sent: int, over: bool) -> None:
    assert epoch().is_over(BEGIN + age, SENT + sent, True) == over


def test_an_epoch_that_the_other_end_has_not_acknowledged_is_never_over() -> None:
    assert not epoch(None).is_over(BEGIN + 10 * EPOCH_NS, SENT + 10 * EPOCH_BYTES, False)


def test_an_epoch_that_is_acknowledged_late_lasts_a_moment_longer() -> None:
    late = BEGIN + 5 * EPOCH_NS
    made = epoch(late)
    assert not made.is_over(late + EPOCH_NS_MIN - 1, SENT, True)
    assert made.is_over(late + EPOCH_NS_MIN, SENT, True)


def test_the_next_epoch_counts_anew() -> None:
    made = epoch()
    now, sent = BEGIN + EPOCH_NS, SENT + EPOCH_BYTES
    assert made.is_over(now, sent, True)
    assert not made.is_over(now + EPOCH_NS_MIN, sent, True)
    assert not made.is_over(now + EPOCH_NS - 1, sent + EPOCH_BYTES - 1, True)
    assert made.is_over(now + EPOCH_NS, sent, True)


def test_an_epoch_ends_long_before_the_limits_of_aes_gcm() -> None:
    assert EPOCH_BYTES <= 1 << 37  # RFC 8446, 5.5: 2^24.5 full records of 2^14 bytes
    assert EPOCH_NS_MIN < EPOCH_NS
