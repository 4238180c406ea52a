"""The order in which the addresses of a server are tried (RFC 8305). Nothing is resolved here."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.server_addresses import (
    NEXT_ADDRESS_MAX_NS,
    NEXT_ADDRESS_NS,
    ServerAddress,
    ServerAddresses,
)

MS = 1_000_000


def four(number: int) -> ServerAddress:
    return ServerAddress(socket.AF_INET, (f"192.0.2.{number}", 9000))


def six(number: int) -> ServerAddress:
    return ServerAddress(socket.AF_INET6, (f"2001:db8::{number:x}", 9000, 0, 0))


def taken(*answer: ServerAddress) -> ServerAddresses:
    addresses = ServerAddresses()
    addresses.take(answer)
    return addresses


def test_the_families_take_turns_and_the_resolvers_first_comes_first() -> None:
    answer = [six(1), six(2), six(3), four(1), four(2)]
    assert taken(*answer).in_order() == [six(1), four(1), six(2), four(2), six(3)]
    assert taken(four(1), six(1), six(2)).in_order() == [four(1), six(1), six(2)]


@given(st.lists(st.builds(lambda is_six, number: (six if is_six else four)(number), st.booleans(), st.integers(1, 9))))
def test_every_address_of_an_answer_is_tried_once(answer: list[ServerAddress]) -> None:
    order = taken(*answer).in_order()
    assert sorted(order) == sorted(set(answer))
    assert order[:1] == answer[:1]


def test_the_address_that_worked_last_is_tried_first_until_an_answer_lacks_it() -> None:
    addresses = taken(six(1), four(1))
    addresses.worked(four(1), 20 * MS)
    assert addresses.in_order() == [four(1), six(1)]
    addresses.take([six(1), six(2), four(1)])
    assert addresses.in_order() == [four(1), six(1), six(2)]
    addresses.take([six(1), four(2)])
    assert addresses.in_order() == [six(1), four(2)]
    addresses.take([six(1), four(1)])
    assert addresses.in_order() == [six(1), four(1)]  # what was forgotten is forgotten


def test_an_address_that_connects_is_tried_first_until_a_handshake_fails_there() -> None:
    addresses = taken(six(1), four(1))
    addresses.connected(four(1), MS)
    addresses.rejected(six(1))
    assert addresses.in_order() == [four(1), six(1)]
    addresses.rejected(four(1))
    assert addresses.in_order() == [six(1), four(1)]


def test_an_address_that_has_worked_stays_first_whatever_connects_or_fails_later() -> None:
    addresses = taken(six(1), four(1))
    addresses.worked(four(1), MS)
    addresses.connected(six(1), MS)
    addresses.rejected(four(1))
    assert addresses.in_order() == [four(1), six(1)]


def test_the_next_address_waits_longer_where_a_connection_is_known_to_take_long() -> None:
    addresses = taken(six(1), four(1))
    assert addresses.delay_after(six(1)) == NEXT_ADDRESS_NS
    for took, delay in ((10 * MS, NEXT_ADDRESS_NS), (400 * MS, 800 * MS), (5000 * MS, NEXT_ADDRESS_MAX_NS)):
        addresses.worked(four(1), took)
        assert addresses.delay_after(four(1)) == delay
        assert addresses.delay_after(six(1)) == NEXT_ADDRESS_NS


def test_before_the_first_answer_there_is_nothing_to_try() -> None:
    assert ServerAddresses().in_order() == []
