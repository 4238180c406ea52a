"""How often a peer may begin something, and what is remembered of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.churn_limit import REMEMBERED, ChurnLimit

BURST, INTERVAL = 5, 100


def begun(limit: ChurnLimit, peer: object, moments: list[int]) -> list[int]:
    """The moments at which a peer that always tries has begun something."""
    found = []
    for now in moments:
        if limit.has_room(peer, now):
            limit.record(peer, now)
            found.append(now)
    return found


def test_a_burst_passes_at_once_and_then_one_each_interval() -> None:
    limit = ChurnLimit(BURST, INTERVAL)
    assert begun(limit, "ann", [1000] * 20) == [1000] * BURST
    assert begun(limit, "ann", list(range(1001, 1501))) == [1100, 1200, 1300, 1400, 1500]
    assert begun(limit, "ann", [10_000] * 20) == [10_000] * BURST


def test_the_churn_of_one_peer_costs_another_nothing() -> None:
    limit = ChurnLimit(BURST, INTERVAL)
    begun(limit, "ann", [1000] * 20)
    assert begun(limit, "bob", [1000] * 20) == [1000] * BURST


@given(st.lists(st.integers(0, 2 * INTERVAL), max_size=60))
def test_never_more_pass_than_a_burst_and_one_each_interval(pauses: list[int]) -> None:
    moments = [sum(pauses[: at + 1]) for at in range(len(pauses))]
    passed = begun(ChurnLimit(BURST, INTERVAL), "ann", moments)
    for at, first in enumerate(passed):
        for count, last in enumerate(passed[at:], 1):
            assert count <= BURST + (last - first) // INTERVAL


def test_what_is_recorded_without_room_is_a_debt() -> None:
    limit = ChurnLimit(BURST, INTERVAL)
    for _ in range(2 * BURST):
        limit.record("ann", 0)
    assert not limit.has_room("ann", BURST * INTERVAL) and limit.has_room("ann", (BURST + 1) * INTERVAL)


def test_a_peer_is_forgotten_once_its_burst_is_back_and_peers_are_few() -> None:
    limit = ChurnLimit(BURST, INTERVAL)
    for peer in range(2 * REMEMBERED):
        limit.record(peer, 1000)
    assert len(limit._full_at) == REMEMBERED
    limit.record("ann", 2000)
    assert list(limit._full_at) == ["ann"]
