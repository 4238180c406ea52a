"""The addresses and routes of a server that a client takes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.kernel_entries import is_within, is_within_any, share
from pipeline.policy.pushed import PRIVATE, PUBLIC_ADDRESSES_MAX, SPECIAL, sort_out, why_not_address

NETWORKS = st.one_of(
    st.builds(lambda n, p: ip_network((n, p), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda n, p: ip_network((n, p), strict=False), st.integers(2**32, 2**128 - 1), st.integers(0, 128)),
)
HOME = ip_network("10.70.0.0/16")
EVERYTHING = ip_network("0.0.0.0/0")


@given(st.lists(NETWORKS, max_size=40))
def test_whatever_is_taken_touches_nothing_special_and_little_of_the_internet(routes: list) -> None:
    taken, refused = sort_out(routes, True, ())
    assert {*taken} | {*refused} == {*routes} and not {*taken} & {*refused}
    for version, most in PUBLIC_ADDRESSES_MAX.items():
        public = [each for each in taken if each.version == version and not is_within_any(each, PRIVATE)]
        assert sum(each.num_addresses for each in public) <= most
    assert not any(share(each, special) for each in taken for networks in SPECIAL.values() for special in networks)


@given(st.lists(NETWORKS, max_size=20), st.lists(NETWORKS, max_size=5))
def test_a_list_admits_what_lies_in_it_and_nothing_else(routes: list, listed: list) -> None:
    taken, refused = sort_out(routes, tuple(listed), ())
    assert all(is_within_any(each, listed) for each in taken)
    assert all(is_within_any(each, listed) or "none of accept_routes" in why for each, why in refused.items())


@given(st.lists(NETWORKS, max_size=20))
def test_nothing_is_taken_where_accept_routes_is_false_but_what_the_configuration_asks_for(routes: list) -> None:
    asked = routes[:1]
    assert set(sort_out(routes, False, asked).taken) == set(asked)


def test_the_internet_in_pieces_is_taken_no_further_than_a_sixteenth() -> None:
    pieces = [ip_network(f"{number}.0.0.0/8") for number in range(1, 224) if number not in (10, 127, 169, 172, 192)]
    taken, refused = sort_out(pieces, True, ())
    assert len(taken) == 8 and all("too large a part" in why for why in refused.values())


def test_a_large_network_of_reserved_addresses_is_refused_as_such() -> None:
    """A larger part of the Internet, which may be listed, would be another reason."""
    reserved = ip_network("240.0.0.0/4")
    assert "reserved" in sort_out([reserved], True, ()).refused[reserved]


def test_private_networks_are_taken_however_large_they_are() -> None:
    assert set(sort_out(PRIVATE, True, ()).taken) == set(PRIVATE)


@pytest.mark.parametrize(
    "text", ["0.0.0.0/0", "0.0.0.0/1", "64.0.0.0/2", "128.0.0.0/4", "::/0", "2000::/3", "2600::/12"]
)
def test_a_large_part_of_the_internet_needs_the_clients_own_word(text: str) -> None:
    route = ip_network(text)
    assert "too large a part" in sort_out([route, HOME], True, ()).refused[route]
    assert set(sort_out([route, HOME], True, [route]).taken) == {route, HOME}


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::"]
)
def test_an_address_that_means_something_else_is_not_taken(text: str) -> None:
    assert why_not_address(ip_address(text))


@pytest.mark.parametrize("text", ["10.0.0.2", "198.51.100.7", "fd00::2", "2001:db8::7"])
def test_an_ordinary_address_is_taken(text: str) -> None:
    assert why_not_address(ip_address(text)) == ""


@given(NETWORKS, NETWORKS)
def test_networks_are_compared_as_the_standard_library_does(one, other) -> None:
    if one.version == other.version:
        assert is_within(one, other) == one.subnet_of(other) and share(one, other) == one.overlaps(other)
    else:
        assert not is_within(one, other) and not share(one, other)
