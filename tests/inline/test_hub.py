"""A hub and its clients: packets reach the peer that owns their address, and packets without a peer are dropped.

The path from one client to another is in test_transit, connecting and disconnecting in test_many_peers.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.inline.harness.ends import DATA, Dial, Make, block_of, frame, hello, number_of, push, until
from tests.inline.harness.hub_ends import BULK_BYTES, FAMILIES, Hosts, between, connected_hub, dropped, inside, packet

# -- between the server and its clients


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("size", [100, BULK_BYTES])
def test_each_of_two_clients_gets_only_its_own_packets(make: Make, version: int, size: int) -> None:
    server, first, second = connected_hub(make)
    for_first, for_second = between(0, 1, range(30), version, size), between(0, 2, range(30, 60), version, size)
    waiting = [each for pair in zip(for_first, for_second, strict=True) for each in pair]
    until(lambda: push(server, waiting) and len(first.packets()) == len(second.packets()) == 30, server, first, second)
    assert first.packets() == for_first
    assert second.packets() == for_second
    up = []
    for client, number in ((first, 1), (second, 2)):
        up += between(number, 0, range(30), version, size)
        waiting = up[-30:]
        until(lambda: push(client, waiting) and len(server.packets()) == len(up), server, client)
    assert server.packets() == up
    assert not dropped(server)


def test_packets_for_many_clients_in_one_burst_reach_their_clients(hosts: Hosts, dial: Dial) -> None:
    server, *peers = hosts(slots=8)
    peers.append(dial(server, hello(client=3)))
    sent: dict[int, list[bytes]] = {1: [], 2: [], 3: []}
    for number in range(90):
        client = (1, 1, 2, 3, 2)[number % 5]
        sent[client] += between(0, client, range(number, number + 1), FAMILIES[number % 2], 60 + number * 40)
        server.write(sent[client][-1])
    until(lambda: sum(len(peer.packets()) for peer in peers) == 90, server)
    for client, peer in enumerate(peers, 1):
        assert Counter(peer.packets()) == Counter(sent[client])
        for version in FAMILIES:
            numbers = [number_of(each) for each in peer.packets() if each[10] >> 4 == version]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    "destination",
    ["10.0.0.77", "192.0.2.1", "10.0.0.1", "10.0.0.255", "224.0.0.1", "fd00::77", "2001:db8::1", "ff02::1", "fe80::1"],
)
def test_a_packet_for_an_address_without_a_peer_is_dropped_and_counted(hosts: Hosts, destination: str) -> None:
    server, first, second = hosts()
    for number in range(2):
        server.write(packet(inside(0, 6 if ":" in destination else 4), destination))
        server.write(*between(0, 1, range(number, number + 1)))
    until(lambda: first.packets() == between(0, 1, range(2)), server)
    assert dropped(server) == {"tun.dropped_no_peer": 2}
    assert second.packets() == []


# -- packets from an address that is not the client's own


V4, V6 = packet(inside(1, 4), inside(0, 4)), packet(inside(1, 6), inside(0, 6))
V4_OF_40 = packet(inside(1, 4), inside(0, 4), size=40)
REFUSED, MALFORMED = "tun.dropped_source_refused", "tun.dropped_packet_malformed"

WRONG = {
    "another client's": (packet(inside(2, 4), inside(0, 4)), REFUSED),
    "another client's, IPv6": (packet(inside(2, 6), inside(0, 6)), REFUSED),
    "the server's": (packet(inside(0, 4), inside(2, 4)), REFUSED),
    "the server's, IPv6": (packet(inside(0, 6), inside(2, 6)), REFUSED),
    "unassigned": (packet("10.0.0.99", inside(0, 4)), REFUSED),
    "unassigned, IPv6": (packet("fd00::99", inside(0, 6)), REFUSED),
    "of another network": (packet("192.0.2.1", inside(2, 4)), REFUSED),
    "of another network, IPv6": (packet("2001:db8::1", inside(2, 6)), REFUSED),
    "the subnet's own": (packet("10.0.0.0", inside(2, 4)), REFUSED),
    "the subnet's broadcast": (packet("10.0.0.255", inside(2, 4)), REFUSED),
    "none": (packet("0.0.0.0", inside(2, 4)), REFUSED),
    "none, IPv6": (packet("::", inside(2, 6)), REFUSED),
    "loopback": (packet("127.0.0.1", inside(0, 4)), REFUSED),
    "loopback, IPv6": (packet("::1", inside(0, 6)), REFUSED),
    "link-local": (packet("169.254.1.1", inside(2, 4)), REFUSED),
    "link-local, IPv6": (packet("fe80::1", inside(2, 6)), REFUSED),
    "multicast": (packet("224.0.0.1", inside(2, 4)), REFUSED),
    "multicast, IPv6": (packet("ff02::1", inside(2, 6)), REFUSED),
    "its own IPv4 mapped into IPv6": (packet("::ffff:10.0.0.2", inside(2, 6)), REFUSED),
    "another's IPv4 mapped into IPv6": (packet("::ffff:10.0.0.3", inside(0, 6)), REFUSED),
    "IPv4 that claims to be IPv6": (V4[:10] + b"\x65" + V4[11:], MALFORMED),
    "IPv6 that claims to be IPv4": (V6[:10] + b"\x45" + V6[11:], MALFORMED),
    "IPv4 as a super-packet of IPv6": (b"\0\x04\0\0\x64" + bytes(5) + V4[10:], "tun.dropped_header_malformed"),
    "a version that there is not": (V4[:10] + b"\x55" + V4[11:], MALFORMED),
    "cut short": (V4[:-1], MALFORMED),
    "cut short, IPv6": (V6[:-1], MALFORMED),
    "with bytes behind its end": (V4 + b"x", MALFORMED),
    "with a header shorter than a header": (V4[:10] + b"\x44" + V4[11:], MALFORMED),
    "with a header longer than the packet": (V4_OF_40[:10] + b"\x4f" + V4_OF_40[11:], MALFORMED),
    "with a total length of nothing": (V4[:12] + b"\0\0" + V4[14:], MALFORMED),
}


@pytest.mark.parametrize(("wrong", "reason"), WRONG.values(), ids=WRONG)
def test_a_packet_from_a_wrong_source_is_dropped_and_counted_and_its_connection_goes_on(
    hosts: Hosts, wrong: bytes, reason: str
) -> None:
    server, first, second = hosts()
    (good,), (across,) = between(1, 0, range(1)), between(1, 2, range(1))
    bare = frame(DATA, wrong[10:]) if not any(wrong[:10]) else b""
    first.send(block_of(wrong, good, wrong, across) + bare + frame(DATA, good[10:]))
    until(lambda: server.packets() == [good, good] and second.packets() == [across], server)
    until(lambda: not server.step())
    assert dropped(server) == {reason: 2 + bool(bare)}
    assert server.packets() == [good, good]
    assert second.packets() == [across]
    assert server.count("tcp.connections_lost") == 0


def with_bytes(packet: bytes, at: int, *values: int) -> bytes:
    """The packet with other bytes in its IP header."""
    at += 10
    return packet[:at] + bytes(values) + packet[at + len(values) :]


ODD = {
    "the first fragment": (4, 6, (0x20, 0x00)),
    "a fragment from the middle": (4, 6, (0x20, 0xB9)),
    "the last fragment": (4, 6, (0x00, 0xB9)),
    "a fragment that would end beyond 65535": (4, 6, (0x1F, 0xFF)),
    "a time to live of 0": (4, 8, (0,)),
    "a time to live of 1": (4, 8, (1,)),
    "options": (4, 0, (0x4F,)),
    "a hop limit of 0": (6, 7, (0,)),
    "a fragment header": (6, 6, (44,)),
    "hop-by-hop options": (6, 6, (0,)),
}


@pytest.mark.parametrize(("version", "at", "values"), ODD.values(), ids=ODD)
def test_a_packet_from_its_own_address_passes_unaltered_however_odd_it_is(
    hosts: Hosts, version: int, at: int, values: tuple[int, ...]
) -> None:
    """Its receiver's kernel judges it; here it is neither put together nor answered."""
    server, first, second = hosts()
    up, across = (with_bytes(packet(inside(1, version), inside(to, version)), at, *values) for to in (0, 2))
    first.send(block_of(up, across))
    until(lambda: server.packets() == [up] and second.packets() == [across], server)
    assert not dropped(server)
    assert first.packets() == []


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("first_byte", [0x20, 0x00], ids=["first", "later"])
def test_a_fragment_from_a_wrong_source_is_dropped_like_a_whole_packet(
    hosts: Hosts, version: int, first_byte: int
) -> None:
    server, first, second = hosts()
    wrong = packet(inside(2, version), inside(0, version))
    wrong = with_bytes(wrong, 6, first_byte, 0xB9) if version == 4 else with_bytes(wrong, 6, 44)
    first.send(block_of(wrong))
    until(lambda: dropped(server) == {REFUSED: 1}, server)
    assert server.packets() == second.packets() == []
