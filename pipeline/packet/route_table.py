"""Which peer an address belongs to: longest prefix over the networks of all peers.

    replace(entries)      the whole table anew
    peer_of(address)      index of the peer whose address it is, NOBODY if it is nobody's
    cache.get(address)    the same for who binds it once: None for an address that is not there; then look_up(address)
    only                  the peer that has everything (0.0.0.0/0, ::/0 and nothing else), then nothing need be looked
                          up; else NOBODY

An address is its 4 or 16 bytes as a packet has them. An entry of NOBODY is a hole in a wider network of somebody's.
Of two entries for one network the first counts. `cache` is one dict for life; when it is full it begins anew, so
whoever sends from or to ever new addresses costs time, not memory. One thread may replace() while others look up.
"""

from __future__ import annotations

from collections.abc import Iterable

NOBODY = -1
CACHE_MAX = 65536  # some 10 MB at the most


class RouteTable:
    """The table of one process."""

    def __init__(self) -> None:
        self.cache: dict[bytes, int] = {}
        self.only = NOBODY
        self._families: dict[int, list[tuple[int, dict[int, int]]]] = {}

    def replace(self, entries: Iterable[tuple[bytes, int, int]]) -> None:
        """`entries`: network address, prefix length, index of the peer."""
        networks: dict[int, dict[int, dict[int, int]]] = {4: {}, 16: {}}
        peers, lengths = set(), set()
        for address, length, peer in entries:
            size = len(address)
            of_length = networks[size].setdefault(length, {})
            of_length.setdefault(int.from_bytes(address, "big") >> 8 * size - length, peer)
            peers.add(peer)
            lengths.add(length)
        self.only = peers.pop() if lengths == {0} and len(peers) == 1 else NOBODY
        self._families = {
            size: [(8 * size - length, of_size[length]) for length in sorted(of_size, reverse=True)]
            for size, of_size in networks.items()
        }
        self.cache.clear()  # after the change: look_up relies on it

    def peer_of(self, address: bytes) -> int:
        try:
            return self.cache[address]
        except KeyError:
            return self.look_up(address)

    def look_up(self, address: bytes) -> int:
        """As peer_of, past the cache; the next time it is there."""
        while True:
            families = self._families
            peer = _longest(families.get(len(address), ()), int.from_bytes(address, "big"))
            if len(self.cache) >= CACHE_MAX:
                self.cache.clear()
            self.cache[address] = peer
            if families is self._families:  # else the table was replaced in between, and this answer is an old one
                return peer


def _longest(networks: Iterable[tuple[int, dict[int, int]]], address: int) -> int:
    for shift, peers in networks:
        peer = peers.get(address >> shift)
        if peer is not None:
            return peer
    return NOBODY
