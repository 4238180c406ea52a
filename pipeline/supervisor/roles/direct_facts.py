"""From the tables of a hub: where its clients are seen, which networks are theirs alone, how long the way by it is."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_network

from pipeline.policy.carrier import State
from pipeline.shm import datagram_status
from pipeline.shm.layout import DATAGRAM_ROUND_TRIP, RECORD_WORDS
from pipeline.shm.peer_table import PeerTable, Route
from pipeline.wire.notes import NETWORKS_MAX, Network, Place

PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
PRIVATE6 = tuple(map(ip_network, ("fc00::/7",)))


def is_private(host: bytes) -> bool:
    """Whether an address of 16 bytes is reached from its own network alone. Link-local ones need a zone: not these."""
    address = IPv6Address(host)
    if address.ipv4_mapped is not None:
        return any(address.ipv4_mapped in network for network in PRIVATE)
    return any(address in network for network in PRIVATE6)


def reflexive_places(table: PeerTable, peer: int) -> list[Place]:
    """Where the hub's own sockets see this peer now."""
    found = (datagram_status.read(words, peer) for words in table.datagrams_in)
    return list(
        dict.fromkeys(
            Place(each.host, each.port)
            for each in found
            if each is not None and each.carrier.state is State.OPEN and each.port
        )
    )


def relayed_round_trip(table: PeerTable, one: int, two: int) -> int:
    """Microseconds; 0 if it is not known of both."""
    trips = []
    for peer in (one, two):
        at = peer * RECORD_WORDS + DATAGRAM_ROUND_TRIP
        trips.append(min((words[at] for words in table.datagrams_out if words[at]), default=0))
    return sum(trips) if all(trips) else 0


def networks_of(peer: int, routes: Iterable[Route]) -> tuple[Network, ...] | None:
    """All networks of a peer; None if they are none, or many, or another's are inside them."""
    own: list[tuple[int, int, int, bytes]] = []
    others: list[tuple[int, int, int, bytes]] = []
    for address, length, owner in routes:
        bits = int.from_bytes(address, "big") >> 8 * len(address) - length
        (own if owner == peer else others).append((len(address), length, bits, address))
    if not 0 < len(own) <= NETWORKS_MAX:
        return None
    for size, length, bits, _ in own:
        if any(
            size == other_size and other_length >= length and other_bits >> other_length - length == bits
            for other_size, other_length, other_bits, _ in others
        ):
            return None
    return tuple(Network(address, length) for _, length, _, address in own)
