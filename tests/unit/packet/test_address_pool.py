"""Addresses that a server hands out: which addresses there are, and which is next."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.address_pool import AddressPool


def pool(interface: str) -> AddressPool:
    return AddressPool(ip_interface(interface))


def numbers(*addresses: str) -> set[int]:
    return {int(ip_address(address)) for address in addresses}


def span(network: str) -> tuple[int, int]:
    return int(ip_network(network)[0]), int(ip_network(network)[-1])


@pytest.mark.parametrize(
    ("interface", "inside", "outside"),
    [
        (
            "10.0.0.1/24",
            ["10.0.0.2", "10.0.0.254"],
            ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.2", "9.255.255.255"],
        ),
        ("10.0.0.5/30", ["10.0.0.6"], ["10.0.0.4", "10.0.0.5", "10.0.0.7", "10.0.0.8"]),
        ("10.0.0.0/31", ["10.0.0.1"], ["10.0.0.0", "10.0.0.2"]),
        ("10.0.0.1/31", ["10.0.0.0"], ["10.0.0.1", "10.0.0.2"]),
        ("10.0.0.1/32", [], ["10.0.0.0", "10.0.0.1", "10.0.0.2"]),
        ("10.0.0.1/8", ["10.0.0.2", "10.0.1.0", "10.255.255.254"], ["10.0.0.0", "10.255.255.255"]),
        ("fd00::1/64", ["fd00::2", "fd00::ffff:ffff:ffff:ffff"], ["fd00::", "fd00::1", "fd00:0:0:1::2"]),
        ("fd00::/127", ["fd00::1"], ["fd00::", "fd00::2"]),
        ("fd00::1/127", ["fd00::"], ["fd00::1"]),
        ("fd00::1/128", [], ["fd00::", "fd00::1", "fd00::2"]),
        ("10.0.0.1/24", [], ["::a00:2", "::ffff:10.0.0.2"]),
        ("fd00::1/64", [], ["10.0.0.2"]),
    ],
)
def test_which_addresses_a_host_may_have(interface: str, inside: list[str], outside: list[str]) -> None:
    assert [a for a in inside + outside if pool(interface).contains(ip_address(a))] == inside


@pytest.mark.parametrize(
    ("interface", "first"),
    [
        ("10.0.0.1/24", "10.0.0.2"),
        ("10.0.0.77/24", "10.0.0.1"),
        ("10.0.0.1/8", "10.0.0.2"),
        ("10.0.0.0/31", "10.0.0.1"),
        ("10.0.0.1/31", "10.0.0.0"),
        ("fd00::1/64", "fd00::2"),
        ("fd00::2/64", "fd00::1"),
        ("fd00::1/127", "fd00::"),
        ("fd00::1/0", "::1"),
    ],
)
def test_the_lowest_free_address_is_next(interface: str, first: str) -> None:
    assert pool(interface).first_free(set()) == ip_address(first)


@pytest.mark.parametrize(
    ("interface", "is_empty"),
    [
        ("10.0.0.1/32", True),
        ("fd00::1/128", True),
        ("10.0.0.1/31", False),
        ("fd00::1/127", False),
        ("10.0.0.1/30", False),
        ("fd00::1/64", False),
    ],
)
def test_a_subnet_of_the_server_alone_is_empty(interface: str, is_empty: bool) -> None:
    assert pool(interface).is_empty is is_empty
    assert (pool(interface).first_free(set()) is None) is is_empty


def test_taken_addresses_are_passed_over() -> None:
    assert pool("10.0.0.1/24").first_free(numbers("10.0.0.2", "10.0.0.3", "10.0.0.5")) == ip_address("10.0.0.4")


def test_a_subnet_can_run_out_of_addresses() -> None:
    assert pool("10.0.0.1/30").first_free(numbers("10.0.0.2")) is None
    assert pool("10.0.0.1/31").first_free(numbers("10.0.0.0")) is None


def test_reserved_ranges_are_passed_over_in_one_step_however_wide() -> None:
    halves = [span("fd00::/65")]
    assert pool("fd00::1/64").first_free(set(), halves) == ip_address("fd00::8000:0:0:0")
    assert pool("10.0.0.1/8").first_free(set(), [span("10.0.0.0/9"), span("10.128.0.0/9")]) is None


class Counted(set):
    """A set that counts how often it is asked."""

    asked = 0

    def __contains__(self, value: object) -> bool:
        self.asked += 1
        return super().__contains__(value)


@pytest.mark.parametrize("interface", ["10.0.0.1/8", "fd00::1/64"])
def test_a_search_takes_as_many_steps_as_there_are_addresses_taken(interface: str) -> None:
    first = int(pool(interface).first_free(set()))
    taken = Counted(range(first, first + 1000))
    assert int(pool(interface).first_free(taken)) == first + 1000
    assert taken.asked <= 1002


@given(st.sampled_from(["10.0.0.1/28", "10.0.0.4/29", "10.0.0.0/31", "fd00::1/125", "fd00::3/127"]), st.data())
def test_the_next_is_the_lowest_of_all_that_are_free(interface: str, data: st.DataObject) -> None:
    subnet = pool(interface)
    every = [address for address in subnet.network if subnet.contains(address)]
    taken = set(data.draw(st.lists(st.sampled_from(list(subnet.network)))))
    spans = sorted(data.draw(st.lists(st.tuples(*[st.sampled_from(list(subnet.network))] * 2).map(sorted), max_size=3)))
    free = [
        address
        for address in every
        if address not in taken and not any(first <= address <= last for first, last in spans)
    ]
    found = subnet.first_free(set(map(int, taken)), [(int(first), int(last)) for first, last in spans])
    assert found == (free[0] if free else None)
