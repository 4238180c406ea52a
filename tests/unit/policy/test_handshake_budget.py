"""The handshake budget: all of the time in quiet, a share beside traffic, nothing for handshakes that succeed."""

from __future__ import annotations

import pytest

from pipeline.policy.handshake_budget import (
    BURST_NS,
    BUSY_NS,
    SHARE,
    TRAFFIC_BYTES,
    TURN_NS,
    WINDOW_NS,
    HandshakeBudget,
)

SECOND = 1_000_000_000
START = 5 * SECOND
STEP_NS = 100_000  # the duty asks so often


class Peers:
    """The duty of a worker: traffic of peers at a rate, and clients that take all the time that they get."""

    def __init__(self, bytes_per_second: int, cost_ns: int = TURN_NS) -> None:
        self.budget = HandshakeBudget()
        self.now = START
        self._rate = bytes_per_second
        self._cost_ns = cost_ns
        self._bytes = 0.0

    def run(self, seconds: float) -> float:
        """The part of so many seconds that was spent on clients."""
        spent = 0
        began = self.now
        while self.now < began + seconds * SECOND:
            self.now += STEP_NS
            self._bytes += self._rate * STEP_NS / SECOND
            self.budget.observe(int(self._bytes), self.now)
            if self.budget.allowance(self.now):
                self.budget.spend(self._cost_ns)
                spent += self._cost_ns
                self.now += self._cost_ns
                self._bytes += self._rate * self._cost_ns / SECOND
        return spent / (self.now - began)


BUSY = 2 * TRAFFIC_BYTES * SECOND // WINDOW_NS


def test_beside_traffic_clients_have_their_share_of_the_time() -> None:
    peers = Peers(BUSY)
    peers.run(1.0)
    assert peers.run(10.0) == pytest.approx(1 / SHARE, rel=0.05)


@pytest.mark.parametrize("cost_ns", [10_000, 5 * TURN_NS, 50 * TURN_NS])
def test_turns_that_take_longer_or_shorter_than_allowed_change_nothing_in_the_share(cost_ns: int) -> None:
    peers = Peers(BUSY, cost_ns)
    peers.run(2.0)
    assert peers.run(20.0) <= 1.1 / SHARE


@pytest.mark.parametrize("rate", [0, TRAFFIC_BYTES * SECOND // WINDOW_NS // 2])
def test_without_traffic_clients_have_all_the_time(rate: int) -> None:
    assert Peers(rate).run(5.0) > 0.9


def test_a_turn_is_so_short_that_a_packet_hardly_waits() -> None:
    assert HandshakeBudget().allowance(START) == TURN_NS <= 2_000_000


def test_what_is_saved_up_beside_traffic_is_one_burst() -> None:
    peers = Peers(BUSY)
    peers.run(1.0)
    peers.budget._account_ns = 0
    now = peers.now + 100 * BURST_NS * SHARE
    peers.budget._busy_until = now + SECOND
    peers.budget.allowance(now)
    assert peers.budget._account_ns == BURST_NS


def test_traffic_that_pauses_for_a_moment_has_not_ended() -> None:
    budget = HandshakeBudget()
    budget.observe(0, START)
    budget.observe(TRAFFIC_BYTES, START + WINDOW_NS)
    budget.spend(10 * SECOND)
    assert budget.allowance(START + WINDOW_NS + BUSY_NS - 1) == 0
    assert budget.allowance(START + WINDOW_NS + BUSY_NS) == TURN_NS


def test_a_handshake_that_succeeds_costs_nothing() -> None:
    """As when all peers come back, and the first ones have traffic already."""
    budget = HandshakeBudget()
    budget.observe(0, START)
    budget.observe(TRAFFIC_BYTES, START + WINDOW_NS)
    now = START + WINDOW_NS
    for _ in range(10_000):
        assert budget.allowance(now)
        budget.spend(TURN_NS // 2)
        budget.give_back(TURN_NS // 2)


def test_a_debt_is_paid_off_before_anything_is_allowed_again() -> None:
    budget = HandshakeBudget()
    budget.observe(0, START)
    budget.observe(TRAFFIC_BYTES, START + WINDOW_NS)
    now = START + WINDOW_NS
    budget.allowance(now)
    budget.spend(BURST_NS + 9 * TURN_NS)
    assert budget.allowance(now + 10 * TURN_NS * SHARE - SHARE) == 0
    assert budget.allowance(now + 10 * TURN_NS * SHARE) == TURN_NS
