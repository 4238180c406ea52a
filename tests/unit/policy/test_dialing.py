"""The dialing of a server, in simulated time: a network says which addresses answer, and how soon."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from itertools import pairwise

import pytest

from pipeline.errors import LocalError
from pipeline.policy.backoff import Backoff
from pipeline.policy.dialing import (
    CONNECT_NS,
    DIALS_AT_ONCE,
    LOOKUP_SLOW_NS,
    LOOKUPS_AT_ONCE,
    NO_ANSWER,
    STABLE_NS,
    TURN_NS,
    UNRESOLVED,
    Abandon,
    Connect,
    Dialing,
    FailedAttempt,
    Resolve,
)
from pipeline.policy.server_addresses import NEXT_ADDRESS_NS, ServerAddress

SECOND = 1_000_000_000
MS = 1_000_000
START = 1_000 * SECOND
STEP = 10 * MS
SILENT = None  # an address that does not answer


def four(number: int) -> ServerAddress:
    return ServerAddress(socket.AF_INET, (f"192.0.2.{number}", 9000))


def six(number: int) -> ServerAddress:
    return ServerAddress(socket.AF_INET6, (f"2001:db8::{number:x}", 9000, 0, 0))


class Network:
    """Carries out what the dialing asks for, on its own clock, in steps of STEP.

    `answers`: ns until each address connects, "" and a reason at once, or SILENT; others are refused. `resolver`: the
    answer and its delay, or None if it hangs. A connection is established HANDSHAKE after it connected, unless
    `rejects` has the address.
    """

    def __init__(self, slots: int = 8, lane: int = 0, lanes: int = 1, maximum: float = 10.0) -> None:
        backoff = Backoff(0.1, maximum, random.Random(1))
        self.dialing = Dialing(range(lane, slots, lanes), lane, lanes, backoff)
        self.now = START
        self.answers: dict[ServerAddress, int | None] = {}
        self.rejects: set[ServerAddress] = set()
        self.resolver: tuple[list[ServerAddress], int] | None = ([four(1)], 0)
        self.handshake_ns = 5 * MS
        self.dials: list[tuple[int, int, ServerAddress]] = []  # when, which slot, where
        self.beaten: list[dict[ServerAddress, str]] = []
        self.failures: list[FailedAttempt] = []
        self.established: dict[int, int] = {}  # slot: when
        self.lookups = 0
        self.most = 0  # attempts under way
        self._events: list[tuple[int, Callable[[], None]]] = []
        self._connecting: dict[tuple[int, ServerAddress], bool] = {}

    def answer(self, *addresses: ServerAddress, after: int = 0) -> None:
        self.resolver = (list(addresses), after)

    def run(self, duration: int) -> None:
        end = self.now + duration
        while self.now < end:
            self.step()
            self.now += STEP

    def run_until(self, condition: Callable[[], bool], limit: int = 100 * SECOND) -> int:
        """Run until the condition holds; the ns that this took."""
        began = self.now
        while not condition():
            self.run(STEP)
            assert self.now < began + limit
        return self.now - began

    def is_complete(self) -> bool:
        return len(self.established) == len(self.dialing.slots)

    def step(self) -> None:
        for event in [event for event in self._events if event[0] <= self.now]:
            self._events.remove(event)
            event[1]()
        while actions := self.dialing.step(self.now):
            for action in actions:
                match action:
                    case Resolve():
                        self._resolve()
                    case Connect(index, address):
                        self._connect(index, address)
                    case Abandon(index, address):
                        del self._connecting[index, address]
        self.most = max(self.most, sum(slot.race is not None for slot in self.dialing.slots.values()))
        self.failures += self.dialing.failed_attempts
        self.dialing.failed_attempts.clear()

    def _resolve(self) -> None:
        self.lookups += 1
        if self.resolver is not None:
            addresses, delay = self.resolver
            why = "" if addresses else "the name is unknown"
            self._after(delay, lambda: self.dialing.resolved(addresses, why, self.now))

    def _connect(self, index: int, address: ServerAddress) -> None:
        assert (index, address) not in self._connecting
        self.dials.append((self.now, index, address))
        if address not in self.answers:
            self.dialing.failed(index, address, "refused")
            return
        self._connecting[index, address] = True
        delay = self.answers[address]
        if delay is not SILENT:
            self._after(delay, lambda: self._connected(index, address))

    def _connected(self, index: int, address: ServerAddress) -> None:
        if not self._connecting.pop((index, address), False):
            return  # abandoned
        self.dialing.connected(index, address, self.now)
        self._after(self.handshake_ns, lambda: self._finish(index, address))

    def _finish(self, index: int, address: ServerAddress) -> None:
        if address in self.rejects:
            self.dialing.failed(index, address, "no TLS")
            return
        if self.dialing.slots[index].established_at is not None:
            self.dialing.lost(index, self.now)  # the new connection replaces the old one
        self.beaten.append(self.dialing.established(index, self.now))
        self.established[index] = self.now

    def lose(self, *indexes: int) -> None:
        for index in indexes or list(self.established):
            del self.established[index]
            self.dialing.lost(index, self.now)

    def _after(self, delay: int, act: Callable[[], None]) -> None:
        self._events.append((self.now + delay, act))


def connected(*addresses: ServerAddress, slots: int = 8, **options: int) -> Network:
    """A network in which every slot has been established for a while; each address answers after 10 ms."""
    network = Network(slots, **options)
    network.answer(*addresses)
    network.answers = dict.fromkeys(addresses, 10 * MS)
    network.run_until(lambda: len(network.established) == len(network.dialing.slots))
    network.run(2 * STABLE_NS)
    network.dials.clear()
    return network


# -- addresses


def test_a_dead_address_in_front_of_a_good_one_costs_a_quarter_of_a_second_once() -> None:
    network = Network()
    network.answer(six(1), four(1))
    network.answers = {six(1): SILENT, four(1): 10 * MS}
    took = network.run_until(lambda: len(network.established) == 8)
    assert NEXT_ADDRESS_NS < took < NEXT_ADDRESS_NS + 200 * MS
    assert [address for _, _, address in network.dials].count(six(1)) == 1
    assert network.beaten == [{six(1): NO_ANSWER}, *[{}] * 7]
    assert network.failures == []


def test_after_a_restart_of_the_server_the_address_that_worked_is_dialed_alone() -> None:
    network = Network()
    network.answer(six(1), four(1))
    network.answers = {six(1): SILENT, four(1): 10 * MS}
    network.run_until(lambda: len(network.established) == 8)
    network.run(2 * STABLE_NS)
    network.dials.clear()
    network.lose()
    assert network.run_until(lambda: len(network.established) == 8) < 200 * MS
    assert {address for _, _, address in network.dials} == {four(1)}


def test_of_twenty_addresses_the_last_one_is_found_and_remembered() -> None:
    network = Network()
    network.answer(*map(four, range(20)))
    network.answers = {**dict.fromkeys(map(four, range(19)), SILENT), four(19): 10 * MS}
    assert network.run_until(lambda: len(network.established) == 8) < 20 * NEXT_ADDRESS_NS + 200 * MS
    assert len(network.dials) == 20 + 7


def test_an_address_that_is_refused_makes_way_at_once() -> None:
    network = Network()
    network.answer(six(1), six(2), four(1))
    network.answers = {four(1): 10 * MS}
    assert network.run_until(lambda: len(network.established) == 8) < 200 * MS
    assert network.beaten[0] == {six(1): "refused"}


def test_an_address_that_connects_and_then_fails_makes_way_for_those_it_had_beaten() -> None:
    network = Network(slots=1)
    network.answer(six(1), four(1))
    network.answers = {six(1): NEXT_ADDRESS_NS + 50 * MS, four(1): 400 * MS}
    network.rejects = {six(1)}
    network.run_until(lambda: bool(network.established))
    assert [address for _, _, address in network.dials][:3] == [six(1), four(1), four(1)]
    assert network.beaten == [{six(1): "no TLS", four(1): NO_ANSWER}]


def test_an_address_that_connects_and_then_fails_is_not_the_first_one_of_the_next_attempt() -> None:
    network = Network(slots=1)
    network.answer(four(1), six(1))
    network.answers = {six(1): 10 * MS}
    network.rejects = {six(1)}
    network.run(SECOND)
    assert [address for _, _, address in network.dials][:4] == [four(1), six(1)] * 2


def test_an_address_that_refuses_is_tried_ever_more_seldom_while_another_one_is_silent() -> None:
    network = Network(slots=1)
    network.answer(four(1), six(1))
    network.answers = {six(1): SILENT}
    network.run(CONNECT_NS)
    assert 2 < [address for _, _, address in network.dials].count(four(1)) < 10


def test_a_slow_path_is_not_raced_once_it_has_worked() -> None:
    network = Network()
    network.answer(four(1), four(2))
    network.answers = dict.fromkeys([four(1), four(2)], 400 * MS)
    network.run_until(lambda: len(network.established) == 8)
    assert [address for _, _, address in network.dials].count(four(2)) == 1


def test_an_address_that_never_answers_is_given_up_and_its_socket_closed() -> None:
    network = Network(slots=1)
    network.answers = {four(1): SILENT}
    network.run(CONNECT_NS + 4 * STEP)
    assert network.failures == [FailedAttempt({four(1): NO_ANSWER}, "")]
    assert network._connecting == {}


def test_an_attempt_whose_last_address_is_slow_has_not_failed() -> None:
    network = Network()
    network.answer(six(1), four(1))
    network.answers = {four(1): 600 * MS}
    network.run_until(network.is_complete)
    assert network.failures == []


def test_a_server_that_restarts_is_found_while_a_dead_address_still_has_time_to_answer() -> None:
    network = Network()
    network.answer(four(1), six(1))
    network.answers = {four(1): 10 * MS, six(1): SILENT}
    network.run_until(network.is_complete)
    network.run(2 * STABLE_NS)
    del network.answers[four(1)]
    network.lose()
    network.run(SECOND // 2)
    network.answers[four(1)] = 10 * MS
    assert network.run_until(network.is_complete) < 1.5 * SECOND
    assert len(network.failures) == 1


# -- the resolver


def test_the_name_is_looked_up_once_for_all_slots() -> None:
    network = Network()
    network.answers = {four(1): 10 * MS}
    network.run_until(lambda: len(network.established) == 8)
    assert network.lookups == 1


def test_an_answer_that_changed_is_taken_while_the_old_address_is_silent() -> None:
    network = connected(four(1))
    network.answers = {four(1): SILENT, four(2): 10 * MS}
    network.answer(four(2), after=50 * MS)
    network.lose()
    assert network.run_until(lambda: len(network.established) == 8) < NEXT_ADDRESS_NS + 300 * MS
    assert network.dialing.addresses.known == [four(2)]


@pytest.mark.parametrize("resolver", [None, ([], 50 * MS)], ids=["hangs", "fails"])
def test_without_the_resolver_the_addresses_that_are_known_are_used(resolver: tuple | None) -> None:
    network = connected(four(1))
    network.resolver = resolver
    network.lose()
    assert network.run_until(lambda: len(network.established) == 8) < 200 * MS


def test_a_resolver_that_hangs_from_the_start_is_said_and_costs_few_threads() -> None:
    network = Network()
    network.resolver = None
    network.run(20 * 60 * SECOND)
    assert {failed.why for failed in network.failures} == {UNRESOLVED}
    assert network.lookups == LOOKUPS_AT_ONCE
    assert network.dials == []


def test_a_lookup_that_is_slow_gets_a_second_one_beside_it() -> None:
    network = Network()
    network.resolver = None
    network.run(2 * SECOND)
    network.answer(four(1))
    network.answers = {four(1): 10 * MS}
    assert network.run_until(lambda: bool(network.established)) < LOOKUP_SLOW_NS + 11 * SECOND


def test_a_name_that_is_unknown_is_a_failed_attempt_and_is_looked_up_again() -> None:
    network = Network(maximum=0.5)
    network.answer()
    network.run(SECOND)
    assert {failed.why for failed in network.failures} == {"the name is unknown"}
    network.answer(four(1))
    network.answers = {four(1): 10 * MS}
    assert network.run_until(lambda: len(network.established) == 8) < 2 * SECOND


# -- backoff, and the number of attempts


def test_while_the_server_is_out_of_reach_one_slot_tries_for_all() -> None:
    network = connected(four(1))
    network.answers = {}
    network.lose()
    network.run(60 * SECOND)
    times = [when for when, _, _ in network.dials]
    assert 8 < len(times) < 20
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause >= 5 * SECOND for pause in pauses[-4:])


def test_the_others_follow_the_first_one_at_once() -> None:
    network = connected(four(1))
    network.answers = {}
    network.lose()
    network.run(60 * SECOND)
    network.answers = {four(1): 10 * MS}
    network.run_until(lambda: bool(network.established), 11 * SECOND)
    assert network.run_until(lambda: len(network.established) == 8) < 200 * MS


def test_a_server_that_takes_connections_and_breaks_them_is_dialed_once_a_pause() -> None:
    network = Network()
    network.answers = {four(1): 10 * MS}
    network.rejects = {four(1)}
    network.run(60 * SECOND)
    assert len(network.dials) < 20


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_attempts_at_a_time_are_divided_among_the_lanes(lanes: int) -> None:
    networks = [Network(24, lane, lanes) for lane in range(lanes)]
    for network in networks:
        network.answers = {four(1): 10 * MS}
        network.run_until(network.is_complete)
    assert sum(network.most for network in networks) <= DIALS_AT_ONCE


@pytest.mark.parametrize("lanes", [4, 8, 64])
def test_with_more_lanes_than_attempts_they_take_turns(lanes: int) -> None:
    networks = [Network(lanes, lane, lanes) for lane in range(lanes)]
    for network in networks:
        network.answers = {four(1): 10 * MS}
    turns = -(-lanes // DIALS_AT_ONCE)
    for _ in range(turns * TURN_NS // STEP):
        for network in networks:
            network.run(STEP)
        assert sum(slot.race is not None for network in networks for slot in network.dialing.slots.values()) <= 3
    assert all(network.established for network in networks)


def test_a_connection_that_is_refused_among_others_waits_alone() -> None:
    network = connected(four(1))
    network.rejects = {four(1)}
    network.lose(7)
    network.run(60 * SECOND)
    assert {index for _, index, _ in network.dials} == {7}
    assert len(network.dials) < 20
    network.rejects = set()
    network.lose(2)
    assert network.run_until(lambda: 2 in network.established) < 100 * MS


def test_a_server_that_sends_us_away_at_once_is_not_dialed_faster_each_time() -> None:
    network = Network()
    network.answers = {four(1): 10 * MS}
    end = network.now + 60 * SECOND
    while network.now < end:
        network.run(STEP)
        network.lose()
    assert len(network.dials) < 100


def test_a_stable_connection_is_dialed_again_at_once() -> None:
    network = connected(four(1))
    network.lose(3)
    assert network.run_until(lambda: 3 in network.established) < 50 * MS
    assert network.failures == []


def test_it_is_idle_when_every_connection_stands() -> None:
    network = connected(four(1))
    assert network.dialing.is_idle
    network.lose(0)
    assert not network.dialing.is_idle


# -- the network beneath


def test_a_change_of_the_network_makes_waiting_dials_due_at_once() -> None:
    network = connected(four(1))
    network.answers = {four(1): SILENT}
    network.lose()
    network.run(50 * SECOND)
    network.answers = {four(1): 10 * MS}
    network.dialing.hurry(network.now)
    assert network.run_until(lambda: len(network.established) == 8) < 200 * MS


def test_sockets_under_way_when_the_network_changes_are_abandoned_before_they_have_news() -> None:
    network = connected(four(1))
    network.answers = {four(1): SILENT}
    network.lose()
    network.run(2 * STEP)
    network.dialing.hurry(network.now)
    abandoned = network.dialing.take_abandoned()
    assert abandoned and all(each.address == four(1) for each in abandoned)
    assert network.dialing.take_abandoned() == []
    assert not any(isinstance(action, Abandon) for action in network.dialing.step(network.now))


def test_after_a_change_of_the_network_the_name_is_looked_up_although_a_lookup_hangs() -> None:
    network = Network()
    network.resolver = None
    network.run(SECOND)
    network.answer(four(1))
    network.answers = {four(1): 10 * MS}
    network.dialing.hurry(network.now)
    assert network.run_until(lambda: bool(network.established)) < 100 * MS


def test_a_connection_is_dialed_anew_beside_the_one_that_stands() -> None:
    network = connected(four(1))
    before = dict(network.established)
    for index in network.dialing.slots:
        network.dialing.renew(index, network.now)
    network.run(STEP)
    assert network.dialing.established_count == 8
    network.run_until(lambda: all(when > before[index] for index, when in network.established.items()))
    assert network.most <= DIALS_AT_ONCE
    assert network.dialing.is_idle


def test_a_connection_that_has_recovered_is_not_dialed_anew() -> None:
    network = connected(four(1))
    network.answers = {four(1): SILENT}
    network.dialing.renew(0, network.now)
    network.run(10 * STEP)
    for index in (0, 1):  # of 1, nothing is under way
        network.dialing.keep(index)
    network.run(STEP)
    assert network.dialing.is_idle and network._connecting == {}


def test_when_the_old_connection_ends_first_the_attempt_beside_it_goes_on() -> None:
    network = connected(four(1))
    network.dialing.renew(0, network.now)
    network.step()
    network.lose(0)
    assert network.run_until(lambda: 0 in network.established) < 50 * MS
    assert len(network.dials) == 1


def test_a_failed_attempt_beside_a_connection_is_made_again_and_disturbs_no_other() -> None:
    network = connected(four(1))
    network.answers = {}
    network.dialing.renew(0, network.now)
    network.run(30 * SECOND)
    assert network.dialing.established_count == 8
    assert 5 < len(network.dials) < 20


def test_news_of_a_slot_that_cannot_be_is_an_error_of_our_own() -> None:
    dialing = Network().dialing
    for news in (
        lambda: dialing.established(0, START),
        lambda: dialing.lost(0, START),
        lambda: dialing.failed(0, four(1), ""),
    ):
        with pytest.raises(LocalError, match="dial slot 0"):
            news()
