"""Longest-prefix match: for each address, the number of the longest network that contains it.

    replace(entries)          replace the whole table
    lookup(address)           the number of the longest network that the address is in; NO_PEER if there is none
    cache.get(address)        what lookup() would return, or None if the cache does not have the address
    longest_match(address)    lookup() without a look into the cache; the cache has the address afterwards
    only                      the number that all addresses have (the entries are 0.0.0.0/0, ::/0 or both), so that no
                              address need be looked up; else NO_PEER

The table does not know what its numbers mean: workers store peer handles, AddressAssignment stores indexes of its
claims, Membership stores peer indexes. NO_PEER as a number makes a hole in a wider network. EVERYBODY stands for all
peers; to a duty that does not pass such packets on, it is no peer. OWN are the networks of a client with partners.

An address is its 4 or 16 bytes as they are in a packet. Of two entries for one network, the first counts. `cache` is
always the same dict. When it is full it begins anew, so a peer that uses ever new addresses costs time, not memory. One
thread may call replace() while others look up.
"""

from __future__ import annotations

from collections.abc import Iterable

NO_PEER = -1
EVERYBODY = -2
OWN = -3

DEFAULT_ROUTES = ((bytes(4), 0), (bytes(16), 0))  # network address and prefix length of 0.0.0.0/0 and ::/0

LINK_ROUTES = (
    (bytes([224, 0, 0, 0]), 3),  # multicast, broadcast
    (bytes([169, 254, 0, 0]), 16),  # link-local, RFC 3927
    (b"\xff" + bytes(15), 8),
    (b"\xfe\x80" + bytes(14), 10),
)
"""The addresses that `pipeline.packet.ip.is_of_the_link` names, as routes."""

GROUP_ROUTES = (
    (bytes([224, 0, 0, 0]), 4),  # multicast
    (bytes([255] * 4), 32),  # broadcast
    (b"\xff" + bytes(15), 8),
)
"""The addresses of packets to everybody; those of the broadcasts of single subnets are not among them."""

CACHE_MAX = 65536
"""Addresses in the cache, some 10 MB at most."""


class RouteTable:
    """The routes of one process."""

    def __init__(self) -> None:
        self.cache: dict[bytes, int] = {}
        self.only = NO_PEER
        self._families: dict[int, list[tuple[int, dict[int, int]]]] = {}

    def replace(self, entries: Iterable[tuple[bytes, int, int]]) -> None:
        """`entries`: network address, prefix length, number."""
        networks: dict[int, dict[int, dict[int, int]]] = {4: {}, 16: {}}
        numbers, lengths = set(), set()
        for address, length, number in entries:
            size = len(address)
            of_length = networks[size].setdefault(length, {})
            of_length.setdefault(int.from_bytes(address, "big") >> 8 * size - length, number)
            numbers.add(number)
            lengths.add(length)
        self.only = numbers.pop() if lengths == {0} and len(numbers) == 1 else NO_PEER
        self._families = {
            size: [(8 * size - length, of_size[length]) for length in sorted(of_size, reverse=True)]
            for size, of_size in networks.items()
        }
        self.cache.clear()  # after the change: longest_match relies on it

    def lookup(self, address: bytes) -> int:
        try:
            return self.cache[address]
        except KeyError:
            return self.longest_match(address)

    def longest_match(self, address: bytes) -> int:
        while True:
            families = self._families
            number = _longest_match(families.get(len(address), ()), int.from_bytes(address, "big"))
            if len(self.cache) >= CACHE_MAX:
                self.cache.clear()
            self.cache[address] = number
            if families is self._families:  # else the table was replaced meanwhile, and this number is an old one
                return number


def _longest_match(networks: Iterable[tuple[int, dict[int, int]]], address: int) -> int:
    for shift, numbers in networks:
        number = numbers.get(address >> shift)
        if number is not None:
            return number
    return NO_PEER
