"""The limit on packets to everybody: of each sender, and of all together."""

from __future__ import annotations

import pytest

from pipeline.policy import multicast_limit
from pipeline.policy.multicast_limit import BURST_BYTES, PACKET_BYTES_LEAST, SENDERS_AT_ONCE, MulticastLimit

SECOND = 1_000_000_000
RATE = 16_000


def passed(limit: MulticastLimit, sender: int, size: int, seconds: int, tries: int = 1000) -> int:
    """Bytes of a sender that tries so often in each second, behind its burst."""
    step = SECOND // tries
    return size * sum(limit.may_pass(sender, size, SECOND * 100 + at * step) for at in range(tries * seconds))


def test_a_sender_has_its_burst_and_then_its_rate() -> None:
    limit = MulticastLimit(RATE)
    assert abs(passed(limit, 1, 1000, 10) - BURST_BYTES - 10 * RATE) <= 2000


def test_small_packets_count_for_more_than_their_bytes() -> None:
    limit = MulticastLimit(RATE)
    count = passed(limit, 1, 50, 10) / 50
    assert abs(count - (BURST_BYTES + 10 * RATE) / PACKET_BYTES_LEAST) <= 2


def test_a_sender_that_sends_too_much_takes_nothing_from_another() -> None:
    limit = MulticastLimit(RATE)
    passed(limit, 1, 1000, 10)
    assert limit.may_pass(2, 1000, SECOND * 110)


def test_all_senders_together_have_a_limit_too() -> None:
    limit = MulticastLimit(RATE)
    now = SECOND * 100
    sent = 1000 * sum(limit.may_pass(sender, 1000, now) for sender in range(100) for _ in range(100))
    assert sent <= SENDERS_AT_ONCE * BURST_BYTES + 1000


def test_ever_new_senders_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multicast_limit, "SENDERS_MAX", 8)
    limit = MulticastLimit(RATE)
    for sender in range(100):
        limit.may_pass(sender, 100, SECOND)
    assert len(limit._senders) <= 8
