"""The number of the longest network that an address is in, compared with a search of the whole table."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet import route_table
from pipeline.packet.route_table import NO_PEER, RouteTable

Network = IPv4Network | IPv6Network
Entry = tuple[Network, int]


def filled(*entries: tuple[str, int]) -> RouteTable:
    table = RouteTable()
    table.replace(rows([(ip_network(network), peer) for network, peer in entries]))
    return table


def rows(entries: list[Entry]) -> list[tuple[bytes, int, int]]:
    return [(network.network_address.packed, network.prefixlen, peer) for network, peer in entries]


def peer(table: RouteTable, address: str) -> int:
    return table.lookup(ip_address(address).packed)


@st.composite
def addresses(draw: st.DrawFn) -> bytes:
    """Addresses of both families, close together, so that networks nest."""
    size = draw(st.sampled_from([4, 16]))
    return draw(st.sampled_from([bytes(size), b"\xff" * size, b"\x0a" + bytes(size - 1)]))[:-2] + draw(
        st.binary(min_size=2, max_size=2)
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    address = draw(addresses())
    bits = 8 * len(address)
    length = draw(st.one_of(st.integers(0, bits), st.sampled_from([0, bits - 16, bits - 8, bits - 1, bits])))
    return ip_network((address, length), strict=False), draw(st.integers(NO_PEER, 3))


def oracle(table: list[Entry], address: bytes) -> int:
    """The number of the first of the longest networks that the address is in."""
    found = [entry for entry in table if ip_address(address) in entry[0]]
    return max(found, key=lambda entry: entry[0].prefixlen)[1] if found else NO_PEER


@given(st.lists(entries(), max_size=20), st.lists(addresses(), min_size=1, max_size=20))
def test_an_address_belongs_to_the_longest_prefix_that_it_is_in(table: list[Entry], asked: list[bytes]) -> None:
    found = RouteTable()
    found.replace(rows(table))
    asked += [entry[0].network_address.packed for entry in table] + [entry[0][-1].packed for entry in table]
    for address in asked:
        assert found.lookup(address) == oracle(table, address)
        assert found.cache.get(address) == found.longest_match(address) == found.lookup(address)


@given(st.lists(entries(), max_size=8), st.lists(entries(), max_size=8), st.lists(addresses(), max_size=8))
def test_no_entry_of_an_old_table_is_left_in_a_new_one(old: list[Entry], new: list[Entry], asked: list[bytes]) -> None:
    found = RouteTable()
    for table in (old, new):
        found.replace(rows(table))
        assert [found.lookup(address) for address in asked] == [oracle(table, address) for address in asked]


def test_networks_of_different_peers_nest() -> None:
    table = filled(
        ("0.0.0.0/0", 1),
        ("10.0.0.0/8", 2),
        ("10.0.0.0/24", 3),
        ("10.0.0.7/32", 4),
        ("::/0", 5),
        ("fd00::/64", 6),
        ("fd00::7/128", 7),
    )
    assert [peer(table, a) for a in ("9.9.9.9", "10.1.0.1", "10.0.0.1", "10.0.0.7")] == [1, 2, 3, 4]
    assert [peer(table, a) for a in ("2001:db8::1", "fd00::1", "fd00::7")] == [5, 6, 7]


def test_a_hole_in_a_network_belongs_to_no_peer() -> None:
    table = filled(("10.0.0.0/8", 2), ("10.0.0.1/32", NO_PEER))
    assert (peer(table, "10.0.0.1"), peer(table, "10.0.0.2")) == (NO_PEER, 2)


def test_of_two_entries_for_one_network_the_first_counts() -> None:
    assert peer(filled(("10.0.0.0/8", 2), ("10.0.0.0/8", 3)), "10.0.0.1") == 2


def test_an_ipv4_address_is_in_no_ipv6_network() -> None:
    assert peer(filled(("::/0", 1)), "0.0.0.1") == NO_PEER
    assert peer(filled(("0.0.0.0/0", 1)), "::1") == NO_PEER


@pytest.mark.parametrize("size", [0, 3, 5, 15, 17])
def test_bytes_that_are_no_address_belong_to_no_peer(size: int) -> None:
    assert filled(("0.0.0.0/0", 1), ("::/0", 1)).lookup(bytes(size)) == NO_PEER


@pytest.mark.parametrize(
    ("table", "only"),
    [
        ([], NO_PEER),
        ([("0.0.0.0/0", 0)], 0),
        ([("::/0", 3)], 3),
        ([("0.0.0.0/0", 0), ("::/0", 0)], 0),
        ([("0.0.0.0/0", 0), ("::/0", 1)], NO_PEER),
        ([("0.0.0.0/0", 0), ("10.0.0.2/32", 0)], NO_PEER),
        ([("0.0.0.0/0", 0), ("10.0.0.1/32", NO_PEER)], NO_PEER),
        ([("0.0.0.0/1", 0), ("128.0.0.0/1", 0)], NO_PEER),
    ],
)
def test_a_peer_that_owns_all_addresses_needs_no_lookup(table: list[tuple[str, int]], only: int) -> None:
    assert filled(*table).only == only


def test_only_follows_the_table() -> None:
    table = filled(("0.0.0.0/0", 0))
    table.replace([])
    assert table.only == NO_PEER


def test_the_cache_is_one_dict_for_life() -> None:
    table = filled(("10.0.0.0/8", 2))
    cached = table.cache.get
    assert cached(b"\x0a\0\0\1") is None
    assert table.longest_match(b"\x0a\0\0\1") == cached(b"\x0a\0\0\1") == 2
    table.replace([])
    assert cached(b"\x0a\0\0\1") is None
    assert table.lookup(b"\x0a\0\0\1") == cached(b"\x0a\0\0\1") == NO_PEER


def test_ever_new_addresses_fill_no_memory() -> None:
    table = filled(("10.0.0.0/8", 2))
    for number in range(2 * route_table.CACHE_MAX + 10):
        table.lookup(number.to_bytes(4, "big"))
        assert len(table.cache) <= route_table.CACHE_MAX
    assert peer(table, "10.0.0.1") == 2


def test_an_answer_of_the_old_table_is_not_kept_when_a_new_one_comes_in_between() -> None:
    table = filled(("10.0.0.0/8", 2))
    replacement = [rows([(ip_network("10.0.0.0/8"), 3)])]

    class Interrupted(bytes):
        """Another thread replaces the table just before the number found is put into the cache."""

        def __hash__(self) -> int:
            if replacement:
                table.replace(replacement.pop())
            return hash(bytes(self))

    assert table.longest_match(Interrupted(b"\x0a\0\0\1")) == 3
    assert table.cache == {b"\x0a\0\0\1": 3}
