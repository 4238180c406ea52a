"""The turns of a peer: what it overdraws is missing later, and what others learn of it late is charged to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.shm.layout import NUMBER_PACKETS, RECORD_WORDS, TRANSIT_CHARGE
from pipeline.wire import charge
from tests.harness.run import Run
from workers.tcp.link_publisher import LinkPublisher
from workers.tcp.peer_turns import QUANTUM, SAVED_MOST, PeerTurns

PEER = 2


class Turned:
    """The turns of a peer at the tcp worker of lane 0, and the words that tun workers write."""

    def __init__(self, run: Run) -> None:
        self.turns = PeerTurns(PEER, LinkPublisher(run.attach("tcp-0")))
        self._table = run.memory.peer_table

    def charge(self, amount: int, lane: int = 1) -> None:
        self._table.transit_numbers[lane][PEER * RECORD_WORDS + TRANSIT_CHARGE] += amount

    def send_packets(self, count: int, lane: int = 1) -> None:
        self._table.numbers[lane][PEER * RECORD_WORDS + NUMBER_PACKETS] += count


@pytest.fixture
def turned() -> Iterator[Turned]:
    run = Run()
    yield Turned(run)
    run.close()


def test_a_round_brings_a_quantum_and_an_unused_one_is_not_saved(turned: Turned) -> None:
    turned.turns.follow(7)
    assert turned.turns.credit == QUANTUM


def test_what_is_left_of_a_turn_that_was_cut_short_stays_and_grows_in_the_next_round_alone(turned: Turned) -> None:
    turned.turns.spend(QUANTUM // 4, 0, 1)
    turned.turns.follow(0)
    assert turned.turns.credit == QUANTUM - QUANTUM // 4
    turned.turns.follow(1)
    assert turned.turns.credit == QUANTUM


def test_a_peer_that_waits_for_room_saves_the_credit_of_some_rounds_until_it_has_nothing_to_read(
    turned: Turned,
) -> None:
    turns = turned.turns
    assert turns.may_save(7) and not turns.may_save(8)
    turns.follow(3, SAVED_MOST)
    assert turns.credit == 4 * QUANTUM
    turns.follow(4)  # it has room again: nothing is taken away
    assert turns.credit == 4 * QUANTUM
    assert turns.may_save(4) and not turns.may_save(5)
    turns.rest()
    assert turns.credit == QUANTUM


@pytest.mark.parametrize("spent", [QUANTUM, QUANTUM + 1, 2 * QUANTUM - 1, 2 * QUANTUM, 2 * QUANTUM + 1, 9 * QUANTUM])
def test_what_a_turn_overdraws_is_missing_in_the_next_rounds(turned: Turned, spent: int) -> None:
    turned.turns.spend(spent, 0, 1)
    rounds = turned.turns.rounds_to_wait
    turned.turns.follow(rounds - 1)
    assert turned.turns.credit <= 0 and turned.turns.rounds_to_wait == 1
    turned.turns.follow(rounds)
    assert turned.turns.credit == (rounds + 1) * QUANTUM - spent > 0 == turned.turns.rounds_to_wait


def test_receives_are_charged_however_little_they_bring(turned: Turned) -> None:
    turned.turns.spend(0, QUANTUM // charge.READ + 1, 0)
    assert turned.turns.credit < 0


def test_the_debts_of_a_peer_that_is_alone_are_void(turned: Turned) -> None:
    turned.turns.spend(100 * QUANTUM, 0, 1)
    turned.turns.forgive()
    assert turned.turns.credit == QUANTUM


def test_charges_of_the_tun_workers_of_all_lanes_come_in_the_next_turn(turned: Turned) -> None:
    turned.charge(QUANTUM, lane=0)
    turned.charge(QUANTUM, lane=2)
    turned.turns.follow(0)
    assert turned.turns.credit == -QUANTUM


def test_a_slot_is_expected_to_cost_late_what_the_last_ones_did(turned: Turned) -> None:
    for _ in range(40):
        turned.turns.spend(1000, 1, 2)
        turned.charge(2 * 500_000)
        turned.turns.follow(0)
    assert 400_000 < turned.turns.surcharge <= 500_000
    for _ in range(200):
        turned.turns.spend(1000, 1, 2)
        turned.turns.follow(0)
    assert turned.turns.surcharge == 0


def test_the_answers_to_a_peers_packets_are_charged_to_it(turned: Turned) -> None:
    turned.turns.spend(QUANTUM, 0, 1)
    turned.send_packets(QUANTUM // charge.ANSWER)
    turned.turns.follow(0)
    assert turned.turns.credit == -QUANTUM


def test_packets_for_a_peer_that_sends_nothing_cost_it_no_turn(turned: Turned) -> None:
    turned.send_packets(1_000_000)
    turned.turns.follow(0)
    assert turned.turns.credit == QUANTUM


def test_a_successor_charges_nothing_of_its_predecessors_time(turned: Turned) -> None:
    turned.charge(5 * QUANTUM)
    fresh = PeerTurns(PEER, turned.turns._publisher)
    fresh.follow(0)
    assert fresh.credit == QUANTUM and fresh.surcharge == 0
