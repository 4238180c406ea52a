"""Bulk goes by TCP where datagrams are throttled, on paths in simulated time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pipeline.policy.bulk_carrier import (
    LIMITED_NS,
    SECOND,
    SLOW,
    TCP_HOLD_MOST_NS,
    TCP_HOLD_NS,
    TRIAL_HOLD_MOST_NS,
    TRIAL_NS,
    BulkCarrier,
    Phase,
)

STEP_NS = SECOND // 10
MBIT = 125_000


class Peer:
    """A peer that takes so many bytes a second by each carrier, and has bulk for it while `is_busy`."""

    def __init__(self, by_datagrams: float, by_tcp: float) -> None:
        self.rates = {Phase.DATAGRAMS: by_datagrams, Phase.TRIAL: by_tcp, Phase.TCP: by_tcp}
        self.carrier = BulkCarrier()
        self.is_busy = True
        self.now, self.sent = 1000 * SECOND, 0.0
        self.changes: list[tuple[int, Phase]] = []
        self.spent = dict.fromkeys(Phase, 0)

    def run(self, seconds: float) -> Phase:
        for _ in range(int(seconds * 10)):
            self.now += STEP_NS
            phase = self.carrier.phase
            self.spent[phase] += STEP_NS
            if self.is_busy:
                self.sent += self.rates[phase] / 10
            waits = self.is_busy and phase is Phase.DATAGRAMS
            if self.carrier.update(self.now, int(self.sent), waits):
                self.changes.append((self.now, self.carrier.phase))
        return self.carrier.phase


@pytest.mark.parametrize(("by_datagrams", "by_tcp"), [(3, 40), (1, 5), (20, 200), (4, 7)])
def test_bulk_goes_by_tcp_where_that_carries_more(by_datagrams: float, by_tcp: float) -> None:
    peer = Peer(by_datagrams * MBIT, by_tcp * MBIT)
    assert peer.run(12) is Phase.TCP
    assert peer.carrier.rate == pytest.approx(by_datagrams * MBIT, rel=0.1)
    assert peer.carrier.rate_by_tcp == pytest.approx(by_tcp * MBIT, rel=0.1)


@pytest.mark.parametrize(("by_datagrams", "by_tcp"), [(3, 3), (10, 14), (30, 2)])
def test_where_tcp_is_no_better_trials_become_rare(by_datagrams: float, by_tcp: float) -> None:
    peer = Peer(by_datagrams * MBIT, by_tcp * MBIT)
    peer.run(24 * 3600)
    trials = [at for at, phase in peer.changes if phase is Phase.TRIAL]
    assert peer.spent[Phase.TCP] == 0 and 20 <= len(trials) <= 32
    apart = [later - before for before, later in pairwise(trials)]
    assert apart == sorted(apart) and apart[-1] <= TRIAL_HOLD_MOST_NS + LIMITED_NS + TRIAL_NS + SECOND


def test_where_datagrams_stay_throttled_they_are_looked_at_less_and_less_often() -> None:
    peer = Peer(3 * MBIT, 40 * MBIT)
    peer.run(24 * 3600)
    assert peer.spent[Phase.DATAGRAMS] < 0.005 * 24 * 3600 * SECOND
    ends = [at for at, phase in peer.changes if phase is Phase.DATAGRAMS]
    apart = [later - before for before, later in pairwise(ends)]
    assert apart == sorted(apart)
    assert TCP_HOLD_NS < apart[0] < apart[-1] < TCP_HOLD_MOST_NS + 20 * SECOND


def test_datagrams_that_are_throttled_no_more_have_bulk_again() -> None:
    peer = Peer(3 * MBIT, 40 * MBIT)
    assert peer.run(30) is Phase.TCP
    peer.rates[Phase.DATAGRAMS] = 45 * MBIT
    assert peer.run(60) is Phase.DATAGRAMS
    changes = len(peer.changes)
    assert peer.run(3600) is Phase.DATAGRAMS and len(peer.changes) == changes


def test_fast_datagrams_are_never_left() -> None:
    peer = Peer(SLOW * 1.1, 10 * SLOW)
    peer.run(3600)
    assert peer.changes == []


def test_a_flow_that_needs_no_more_than_it_gets_makes_no_trial() -> None:
    peer = Peer(3 * MBIT, 40 * MBIT)
    for _ in range(600):
        peer.is_busy = not peer.is_busy
        peer.run(1)
    assert peer.changes == []


def test_while_nothing_is_sent_nothing_is_tried_anew() -> None:
    peer = Peer(3 * MBIT, 40 * MBIT)
    assert peer.run(12) is Phase.TCP
    peer.is_busy = False
    assert peer.run(3600) is Phase.DATAGRAMS
    assert [phase for _, phase in peer.changes] == [Phase.TRIAL, Phase.TCP, Phase.DATAGRAMS]
