"""A hub of the original program: addresses that clients show by their packets, and packets between them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from pipeline.wire import framing
from tests.inline.harness.ends import DATA, Dial, End, Make, Peer, frame, until
from workers.tcp.connection_log import NAMELESS

SUBNETS = ["10.0.0.1/24", "fd00::1/64"]
VNET = bytes(10)
LONGEST = framing.COMPAT_LENGTH_LIMIT - 1  # without its type
OWN, ONE, TWO, NOBODY = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.9"

Connect = Callable[..., Peer]


def packet(source: str, destination: str, number: int = 0, size: int = 60) -> bytes:
    """A sound packet without a virtio-net header."""
    ends = ip_address(source).packed + ip_address(destination).packed
    if ip_address(source).version == 4:
        return struct.pack(">BBHQ", 0x45, 0, size, number) + ends + bytes(size - 20)
    return struct.pack(">IHBB", 6 << 28, size - 40, 59, 64) + ends + struct.pack(">Q", number) + bytes(size - 48)


def data(*packets: bytes) -> bytes:
    return b"".join(frame(DATA, each) for each in packets)


def arrived(peer: Peer) -> list[bytes]:
    return [body for kind, body in peer.read_frames().frames if kind == DATA]


@pytest.fixture
def hub(make: Make) -> End:
    return make("server", compat=True, capacity=3, client_subnets=SUBNETS, inside=SUBNETS)


@pytest.fixture
def connect(hub: End, dial: Dial) -> Connect:
    """Clients; one with an address has sent a packet from there, which has arrived."""

    def made(address: str = "") -> Peer:
        before = hub.established()
        peer = dial(hub)
        until(lambda: hub.established() == before + 1, hub)
        if address:
            own = OWN if ip_address(address).version == 4 else "fd00::1"
            peer.send(data(packet(address, own)))
            until(lambda: VNET + packet(address, own) in hub.packets(), hub)
        return peer

    return made


@pytest.mark.parametrize(("address", "own"), [(ONE, OWN), ("fd00::2", "fd00::1")])
def test_the_source_of_its_first_packet_is_the_address_of_a_client(
    hub: End, connect: Connect, address: str, own: str
) -> None:
    client, other = connect(address), connect()
    hub.write(VNET + packet(own, address, 7))
    until(lambda: arrived(client), hub)
    assert arrived(client) == [packet(own, address, 7)] and arrived(other) == []


def test_a_client_has_an_address_of_each_ip_version(hub: End, connect: Connect) -> None:
    client = connect(ONE)
    client.send(data(packet("fd00::2", "fd00::1")))
    until(lambda: VNET + packet("fd00::2", "fd00::1") in hub.packets(), hub)
    for source, destination in ((OWN, ONE), ("fd00::1", "fd00::2")):
        hub.write(VNET + packet(source, destination))
    until(lambda: len(arrived(client)) == 2, hub)


def test_a_client_whose_address_is_claimed_from_its_own_host_is_asked_for_a_sign_of_life(
    hub: End, connect: Connect
) -> None:
    connect(ONE)
    (asked,) = hub.workers["tcp-0"].duty("inbound").connections.established.values()
    other = connect(TWO)
    claimant = connect()
    claimant.send(data(packet(ONE, OWN)))
    until(lambda: claimant.read_frames().ended, hub)
    until(lambda: asked.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), hub)
    held = [each for each in hub.workers["tcp-0"].duty("inbound").connections.established.values() if each is not asked]
    assert [each.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for each in held] == [0]
    assert not other.read_frames().ended


def test_what_a_client_has_sent_behind_its_first_packet_waits_for_the_decision_and_is_not_lost(
    hub: End, connect: Connect
) -> None:
    client = connect()
    packets = [packet(ONE, OWN, number) for number in range(20)]
    client.send(data(*packets))
    until(lambda: len(hub.packets()) == len(packets), hub)
    assert hub.packets() == [VNET + each for each in packets]


def test_clients_reach_each_other_past_the_kernel(hub: End, connect: Connect) -> None:
    one, two = connect(ONE), connect(TWO)
    before = hub.packets()
    packets = [packet(ONE, TWO, number, 1400) for number in range(100)]
    for first in range(0, 100, 10):
        one.send(data(*packets[first : first + 10]))
        until(lambda: len(arrived(two)) == first + 10, hub)
    assert arrived(two) == packets and hub.packets() == before
    assert hub.count("tun.packets_forwarded") == len(packets)


def test_many_packets_of_the_kernel_for_several_clients_keep_their_order(hub: End, connect: Connect) -> None:
    clients = {address: connect(address) for address in (ONE, TWO)}
    packets = [packet(OWN, (ONE, TWO)[number % 2], number, LONGEST) for number in range(200)]
    for each in packets:
        hub.write(VNET + each)
    until(lambda: sum(len(arrived(client)) for client in clients.values()) == len(packets), hub)
    for turn, client in enumerate(clients.values()):
        assert arrived(client) == packets[turn::2]


def test_packets_that_nobody_may_get_are_dropped_and_counted_each_by_its_reason(hub: End, connect: Connect) -> None:
    one, _ = connect(ONE), connect(TWO)
    before = hub.packets()
    hub.write(VNET + packet(OWN, NOBODY))
    hub.write(VNET + packet(OWN, ONE, size=LONGEST + 1))
    one.send(data(packet(TWO, OWN), packet(NOBODY, OWN), packet(ONE, ONE)))
    until(lambda: hub.count("tun.dropped_own_destination") == 1, hub)
    until(lambda: hub.count("tun.dropped_packet_too_long") == 1, hub)
    assert hub.count("tun.dropped_no_peer") == 1
    assert hub.count("tun.dropped_source_refused") == 2
    assert hub.packets() == before and arrived(one) == []


def test_the_address_of_a_client_that_is_connected_is_refused_to_another_one(hub: End, connect: Connect) -> None:
    one, thief = connect(ONE), connect()
    thief.send(data(packet(ONE, OWN)))
    until(lambda: thief.read_frames().ended, hub)
    assert hub.count("tcp.connections_refused") == 1 and hub.established() == 1
    log = hub.workers["tcp-0"].duty("inbound").connections._connection_log  # its line is due in a second
    assert log._records[NAMELESS].refusal.startswith(f"refused: {ONE} belongs to the client at 127.0.0.1")
    one.close()
    until(lambda: not hub.established(), hub)
    assert log._peers == {}  # none stays for ever
    connect(ONE)


def test_more_clients_than_there_may_be_are_refused(hub: End, connect: Connect, dial: Dial) -> None:
    clients = [connect() for _ in range(3)]
    fourth = dial(hub)
    until(lambda: fourth.read_frames().ended, hub)
    assert hub.count("tcp.connections_refused") == 1 and hub.established() == len(clients)


def test_a_claim_that_the_supervisor_does_not_answer_ends_the_connection_and_no_other(make: Make, dial: Dial) -> None:
    hub = make("server", compat=True, capacity=3, client_subnets=SUBNETS, inside=SUBNETS, handshake_timeout=0.3)
    silent, other = dial(hub), dial(hub)
    until(lambda: hub.established() == 2, hub)
    hub._channels._answer = lambda request: None
    silent.send(data(packet(ONE, OWN)))
    until(lambda: silent.read_frames().ended, hub)
    assert hub.established() == 1 and not other.read_frames().ended and hub.packets() == []
