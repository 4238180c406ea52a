"""The handshake limiter: how much one address, a flood and its neighbour get; nothing grows without bound."""

from __future__ import annotations

import sys
from collections.abc import Callable
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.counters import ID
from pipeline.errors import LocalError
from pipeline.policy.handshake_limiter import (
    BURST,
    CONNECTS_OF_ADDRESS,
    HANDSHAKES_FULL,
    HANDSHAKES_OF_ADDRESS,
    REMEMBERED,
    SHARE,
    HandshakeLimiter,
    source_of,
)

SECOND = 1_000_000_000
IN_ALL, PER_ADDRESS, RATE = 64, 4, 20
ATTACKER, CLIENT = "192.0.2.66", "198.51.100.7"
PLENTY = 1_000_000


def limiter_of(
    in_all: int = IN_ALL, per_address: int = PER_ADDRESS, rate: int = RATE, workers: int = 1
) -> HandshakeLimiter:
    return HandshakeLimiter(in_all, per_address, rate, workers)


def begun(limiter: HandshakeLimiter, address: str, times: int, now: int = 0) -> int:
    """How many of so many connections at once begin a handshake, if none of them ends."""
    return sum(limiter.try_begin(address, now) == "" for _ in range(times))


def passed(limiter: HandshakeLimiter, address: str, times: int, now: int = 0) -> int:
    """How many of so many connections at once begin a handshake, if each ends at once."""
    total = 0
    for _ in range(times):
        if not limiter.try_begin(address, now):
            limiter.handshake_done(address)
            total += 1
    return total


def addresses(number: int, prefix: str = "10") -> list[str]:
    return [f"{prefix}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(number)]


# -- one address


def test_an_address_has_so_many_handshakes_at_a_time_and_no_more() -> None:
    limiter = limiter_of()
    assert [limiter.try_begin(CLIENT, 0) for _ in range(PER_ADDRESS + 1)] == [""] * PER_ADDRESS + [
        HANDSHAKES_OF_ADDRESS
    ]


def test_a_handshake_that_is_done_makes_room_for_the_next() -> None:
    limiter = limiter_of()
    begun(limiter, CLIENT, PER_ADDRESS)
    limiter.handshake_done(CLIENT)
    assert [limiter.try_begin(CLIENT, 0) for _ in range(2)] == ["", HANDSHAKES_OF_ADDRESS]


def test_two_clients_behind_one_address_open_eight_connections_each_at_once() -> None:
    assert begun(limiter_of(per_address=16, rate=1), CLIENT, 16) == 16


@pytest.mark.parametrize("rate", [1, 5, 16, 20, 1000])
def test_an_address_gets_its_burst_at_once_and_its_rate_from_then_on(rate: int) -> None:
    limiter = limiter_of(rate=rate)
    assert passed(limiter, CLIENT, 2 * max(rate, BURST)) == max(rate, BURST)
    assert limiter.try_begin(CLIENT, 0) == CONNECTS_OF_ADDRESS
    assert [passed(limiter, CLIENT, 2 * rate, now * SECOND) for now in (1, 2, 3)] == [rate] * 3


def test_a_pause_saves_up_one_burst_and_no_more() -> None:
    limiter = limiter_of()
    passed(limiter, CLIENT, 100)
    assert passed(limiter, CLIENT, 100, now=3600 * SECOND) == RATE


def test_a_refused_connect_costs_its_address_nothing() -> None:
    limiter = limiter_of()
    passed(limiter, CLIENT, 100_000)
    assert passed(limiter, CLIENT, 100, now=SECOND) == RATE


# -- what is one address


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::1", "::ffff:0.0.0.1", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_an_ipv4_address_counts_by_itself_and_an_ipv6_one_by_its_64(one: str, other: str, same: bool) -> None:
    assert (source_of(one) == source_of(other)) is same


@given(st.ip_addresses(v=6), st.integers(0, (1 << 64) - 1))
def test_the_owner_of_a_64_gains_nothing_by_its_other_addresses(address: IPv6Address, host: int) -> None:
    neighbour = IPv6Address(int(address) & ~((1 << 64) - 1) | host)
    if not (address.ipv4_mapped or neighbour.ipv4_mapped):
        assert source_of(str(neighbour)) == source_of(str(address))


# -- floods


@pytest.mark.parametrize("connects", [begun, passed], ids=["silence", "garbage"])
def test_a_flood_from_one_address_takes_nothing_from_a_client_behind_another(connects: Callable) -> None:
    limiter = limiter_of()
    for ms in range(20_000):  # 1000 connects a second; garbage is closed at once, silence not in this time
        now = ms * SECOND // 1000
        connects(limiter, ATTACKER, 1, now)
        if ms % 1000 == 500:
            assert passed(limiter, CLIENT, 8, now) == 8


def test_a_flood_that_holds_its_handshakes_keeps_out_all_clients_at_its_address() -> None:
    limiter = limiter_of()
    begun(limiter, ATTACKER, 1000)
    assert limiter.try_begin(ATTACKER, SECOND) == HANDSHAKES_OF_ADDRESS
    limiter.handshake_done(ATTACKER)  # its deadline
    assert limiter.try_begin(ATTACKER, SECOND) == ""


def test_a_flood_that_ends_its_handshakes_leaves_its_address_a_token_each_time_one_falls_due() -> None:
    limiter = limiter_of()
    passed(limiter, ATTACKER, 1000)
    assert limiter.try_begin(ATTACKER, SECOND // RATE - 1) == CONNECTS_OF_ADDRESS
    assert limiter.try_begin(ATTACKER, SECOND // RATE) == ""


def test_an_address_that_was_flooded_from_is_as_good_as_new_when_that_is_over() -> None:
    limiter = limiter_of()
    passed(limiter, ATTACKER, 1000)
    assert passed(limiter, ATTACKER, 8, now=SECOND) == 8


def test_unauthenticated_clients_have_so_many_handshakes_in_all_and_no_more() -> None:
    limiter = limiter_of()
    answers = [limiter.try_begin(address, 0) for address in addresses(IN_ALL + 3)]
    assert answers == [""] * IN_ALL + [HANDSHAKES_FULL] * 3


def test_a_client_behind_a_known_address_gets_in_while_others_hold_every_handshake() -> None:
    limiter = limiter_of()
    limiter.try_begin(CLIENT, 0)
    limiter.handshake_done(CLIENT, proved=True)
    assert sum(begun(limiter, address, PER_ADDRESS) for address in addresses(1000)) == IN_ALL
    assert begun(limiter, CLIENT, 8, now=SECOND) == PER_ADDRESS


def test_an_address_whose_connection_only_ended_is_not_known() -> None:
    limiter = limiter_of()
    passed(limiter, ATTACKER, 1)
    for address in addresses(IN_ALL):
        limiter.try_begin(address, 0)
    assert limiter.try_begin(ATTACKER, SECOND) == HANDSHAKES_FULL


def test_also_known_addresses_have_only_so_many_handshakes_in_all() -> None:
    limiter = limiter_of()
    known = addresses(1000)
    for address in known:
        limiter.try_begin(address, 0)
        limiter.handshake_done(address, proved=True)
    assert sum(begun(limiter, address, 1, now=SECOND) for address in known) == IN_ALL + IN_ALL // SHARE


def test_a_flood_from_very_many_addresses_does_not_lock_out_others_by_their_number() -> None:
    limiter = limiter_of()
    for address in addresses(3 * REMEMBERED):
        assert passed(limiter, address, 1) == 1
    assert passed(limiter, CLIENT, 8) == 8


def test_memory_is_bounded_whatever_the_number_of_addresses() -> None:
    limiter = limiter_of(in_all=PLENTY)
    sizes = []
    for address in addresses(3 * REMEMBERED):
        limiter.try_begin(address, 0)
        limiter.handshake_done(address, proved=True)
        sizes.append(size_of(limiter))
    assert max(sizes[REMEMBERED:]) <= 2 * max(sizes[:REMEMBERED])


def size_of(limiter: HandshakeLimiter) -> int:
    return sum(sys.getsizeof(value) for value in vars(limiter).values())


def test_an_address_is_forgotten_only_when_so_many_have_come_after_it() -> None:
    limiter = limiter_of()
    passed(limiter, ATTACKER, 100)
    for address in addresses(REMEMBERED - 1):
        limiter.try_begin(address, 0)
    assert limiter.try_begin(ATTACKER, 0) == CONNECTS_OF_ADDRESS


def test_an_address_that_comes_again_is_not_the_oldest_any_more() -> None:
    limiter = limiter_of()
    passed(limiter, ATTACKER, 1)
    first, second = addresses(REMEMBERED - 1), addresses(REMEMBERED - 1, prefix="11")
    for address in [*first, *[ATTACKER] * RATE, *second]:
        passed(limiter, address, 1)
    assert limiter.try_begin(ATTACKER, 0) == CONNECTS_OF_ADDRESS


def test_a_newcomer_is_remembered_when_as_many_are_as_can_be() -> None:
    limiter = limiter_of()
    for address in addresses(2 * REMEMBERED):
        passed(limiter, address, 1)
    assert passed(limiter, CLIENT, 100) == RATE


# -- several workers, and new limits


@pytest.mark.parametrize(("workers", "handshakes"), [(1, 4), (2, 4), (4, 4), (8, 2), (64, 1)])
def test_an_address_whose_connects_all_come_to_one_worker_has_its_handshakes_and_never_all_of_them(
    workers: int, handshakes: int
) -> None:
    assert begun(limiter_of(workers=workers), CLIENT, 16) == handshakes


def test_workers_share_the_limits() -> None:
    limiters = [limiter_of(workers=4) for _ in range(4)]
    assert [begun(limiter, CLIENT, 100) for limiter in limiters] == [PER_ADDRESS] * 4
    assert (
        sum(begun(limiter, address, 1) for limiter in limiters for address in addresses(100))
        == IN_ALL - 4 * PER_ADDRESS
    )
    for limiter in limiters:
        for _ in range(PER_ADDRESS):
            limiter.handshake_done(CLIENT)
    passed_later = [passed(limiter, CLIENT, 100, now=second * SECOND) for second in (1, 2) for limiter in limiters]
    assert sum(passed_later) == 2 * RATE


def test_a_worker_has_one_handshake_at_least() -> None:
    limiter = limiter_of(in_all=2, per_address=1, rate=1, workers=8)
    assert [limiter.try_begin(CLIENT, 0), limiter.try_begin(CLIENT, 0)] == ["", HANDSHAKES_OF_ADDRESS]


def test_a_client_whose_connections_all_come_to_one_of_many_workers_gets_its_burst() -> None:
    assert passed(limiter_of(workers=16), CLIENT, 100) == BURST


def test_a_lower_limit_counts_handshakes_under_way_and_ends_none() -> None:
    limiter = limiter_of()
    begun(limiter, CLIENT, 4)
    limiter.set_limits(IN_ALL, 2, RATE)
    for _ in range(3):
        assert limiter.try_begin(CLIENT, 0) == HANDSHAKES_OF_ADDRESS
        limiter.handshake_done(CLIENT)
    assert limiter.try_begin(CLIENT, 0) == ""


def test_higher_limits_hold_at_once_for_an_address_that_has_been_refused() -> None:
    limiter = limiter_of(rate=1)
    passed(limiter, CLIENT, 100)
    limiter.set_limits(IN_ALL, PER_ADDRESS, 100)
    assert passed(limiter, CLIENT, 200) == 100


# -- all of it


@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 30),
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["open", "prove", "end"]), st.integers(0, SECOND // 4)),
        max_size=200,
    ),
)
def test_no_sequence_of_connections_gets_past_a_limit(in_all: int, per_address: int, rate: int, steps: list) -> None:
    limiter = limiter_of(in_all, per_address, rate)
    inside = dict.fromkeys(addresses(6), 0)
    connects = dict.fromkeys(inside, 0)
    now = 0
    for number, step, pause in steps:
        now += pause
        address = list(inside)[number]
        if step == "open":
            refused = limiter.try_begin(address, now)
            inside[address] += not refused
            connects[address] += refused != CONNECTS_OF_ADDRESS
        elif inside[address]:
            limiter.handshake_done(address, proved=step == "prove")
            inside[address] -= 1
        assert max(inside.values()) <= per_address
        assert sum(inside.values()) <= in_all + max(1, in_all // SHARE)
        assert connects[address] <= max(rate, BURST) + rate * now / SECOND + 1e-6 * rate


def test_the_end_of_a_handshake_that_has_never_begun_is_a_mistake_of_ours() -> None:
    limiter = limiter_of()
    with pytest.raises(LocalError, match=r"192\.0\.2\.66"):
        limiter.handshake_done(ATTACKER)


def test_every_refusal_is_the_name_of_a_counter() -> None:
    assert {HANDSHAKES_FULL, HANDSHAKES_OF_ADDRESS, CONNECTS_OF_ADDRESS} <= set(ID)


# -- room for another


def test_where_all_handshakes_are_in_use_one_that_ends_makes_room_for_the_next_client() -> None:
    limiter = limiter_of(in_all=4, per_address=4)
    early = addresses(4)
    assert [limiter.try_begin(address, 0) for address in early] == [""] * 4

    def make_room() -> bool:
        if not early:
            return False
        limiter.handshake_done(early.pop(0))
        return True

    late = [limiter.try_begin(address, 0, make_room) for address in addresses(6, prefix="11")]
    assert late == [""] * 4 + [HANDSHAKES_FULL] * 2


def test_the_client_that_needs_room_may_be_behind_the_address_that_loses_a_handshake() -> None:
    limiter = limiter_of(in_all=4, per_address=1)
    for address in addresses(4):
        limiter.try_begin(address, 0)

    def make_room() -> bool:
        limiter.handshake_done(addresses(1)[0])
        return True

    assert limiter.try_begin(addresses(5)[4], 0, make_room) == ""
    assert limiter.try_begin(addresses(1)[0], 0) == HANDSHAKES_FULL


@pytest.mark.parametrize("full", [True, False])
def test_no_handshake_is_ended_for_a_client_that_may_begin_or_is_beyond_the_limits_of_its_address(full: bool) -> None:
    limiter = limiter_of(in_all=8, per_address=2, rate=1)

    def make_room() -> bool:
        raise AssertionError("a handshake was ended without need")

    assert [limiter.try_begin(CLIENT, 0, make_room) for _ in range(3)] == ["", "", HANDSHAKES_OF_ADDRESS]
    if full:
        for address in addresses(6):
            limiter.try_begin(address, 0)
        assert limiter.try_begin(CLIENT, 0, make_room) == HANDSHAKES_OF_ADDRESS
        for _ in range(BURST):
            limiter.try_begin(CLIENT, 0)
        assert limiter.try_begin(CLIENT, 0, make_room) == CONNECTS_OF_ADDRESS
