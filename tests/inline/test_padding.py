"""Padding between two whole ends: packets come out as they went in, small frames have few sizes, and padding counts as
no traffic.

What a frame with padding looks like, and what a hostile one costs: tests/unit/sealing/test_padding.py.
"""

from __future__ import annotations

import random
from functools import partial

import pytest

from pipeline.sealing.padding import SIZES
from pipeline.shm.layout import LINK_RECEIVED_BYTES, SENT_BYTES
from pipeline.wire import messages
from tests.inline.harness.ends import End, Make, carry, ipv4, number_of, step_for, until
from tests.inline.test_sealed import FEC, drops, sealed_pair

pytestmark = pytest.mark.usefixtures("patient")

SENT, RECEIVED = "tcp.bytes_padding_sent", "tcp.bytes_padding_received"

SHAPES = {
    "fec off": {},
    "with connections for light flows": {"light_connections": 1},
    "fec on": FEC,
}


def sizes(least: int = 28, most: int = 1400, count: int = 60) -> list[int]:
    return random.Random(5).sample(range(least, most), count)


def frame_bytes(sender: End, receiver: End, packets: list[bytes]) -> list[int]:
    """The bytes on the wire of each packet that goes alone, with its copies."""
    found = []
    for packet in packets:
        before = sender.count("tcp.bytes_sent")
        carry(sender, receiver, [packet])
        step_for(0.01, sender, receiver)  # its copies
        found.append(sender.count("tcp.bytes_sent") - before)
    return found


def padding_has_arrived(sender: End, receiver: End) -> bool:
    return sender.count(SENT) == receiver.count(RECEIVED)


def counted_as_traffic(end: End) -> tuple[int, int]:
    """Bytes sent and received that count as those of the only peer."""
    table = end.memory.peer_table
    return sum(words[SENT_BYTES] for words in table.sent), sum(words[LINK_RECEIVED_BYTES] for words in table.links)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [(True, True), (True, False), (False, True)], ids=["both", "server", "client"])
def test_packets_of_all_sizes_come_out_as_they_went_in(make: Make, shape: str, padding: tuple[bool, bool]) -> None:
    server, client = sealed_pair(make, each=[{"padding": one} for one in padding], **SHAPES[shape])
    for sender, receiver, pads in ((client, server, padding[1]), (server, client, padding[0])):
        packets = [ipv4(number, size) for number, size in enumerate([*sizes(), 20, 3000, 50_000, 60, 61_000])]
        for packet in packets[:5]:  # one by one
            carry(sender, receiver, [packet])
        carry(sender, receiver, packets[5:])
        assert sorted(receiver.packets(), key=number_of) == packets
        until(partial(padding_has_arrived, sender, receiver), server, client)
        assert bool(sender.count(SENT)) == pads
    assert not drops(server) and not drops(client)


@pytest.mark.parametrize("shape", ["fec off", "with connections for light flows"])
def test_frames_of_small_packets_have_few_sizes_with_it_and_many_without(make: Make, shape: str) -> None:
    server, client = sealed_pair(make, each=[{}, {"padding": True}], **SHAPES[shape])
    small = [ipv4(number, size) for number, size in enumerate(sizes(most=1090, count=30))]
    assert set(frame_bytes(client, server, small)) == set(SIZES)
    assert len(set(frame_bytes(server, client, small))) == 30


def test_copies_of_small_packets_are_padded_as_they_are(make: Make) -> None:
    server, client = sealed_pair(make, each=[{}, {"padding": True}], **FEC)
    for found in frame_bytes(client, server, [ipv4(number, 100) for number in range(10)]):
        assert found and not found % SIZES[0]


def test_padding_is_no_traffic_of_the_peer_at_either_end(make: Make) -> None:
    server, client = sealed_pair(make, each=[{}, {"padding": True}], keepalive=3600.0)
    before = counted_as_traffic(client)[0], counted_as_traffic(server)[1]
    packets = [ipv4(number, size) for number, size in enumerate(sizes(most=1000))]
    frame_bytes(client, server, packets)
    after = counted_as_traffic(client)[0], counted_as_traffic(server)[1]
    sent, received = after[0] - before[0], after[1] - before[1]
    assert sent == received == client.count("tcp.bytes_sent") - client.count(SENT) - before[0]
    assert client.count(SENT) > sent / 4
    padded, plain = sent, frame_bytes(server, client, packets)
    assert padded == sum(plain), "as many as without padding"


def test_keepalives_have_the_size_of_a_small_packet(make: Make) -> None:
    server, client = sealed_pair(make, each=[{}, {"padding": True}], keepalive=0.3)
    until(lambda: client.count("tcp.keepalives_sent") >= 3, server, client)
    until(lambda: server.count("tcp.keepalives_sent") >= 3, server, client)
    assert client.count("tcp.bytes_sent") == SIZES[0] * client.count("tcp.keepalives_sent")
    assert server.count("tcp.bytes_sent") == 42 * server.count("tcp.keepalives_sent")


def test_an_end_that_does_not_take_padding_gets_none(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    features = messages.features
    monkeypatch.setattr(messages, "features", lambda *about: features(*about) & ~messages.TAKES_PADDING)
    server, client = sealed_pair(make, each=[{"padding": True}] * 2, **FEC)
    carry(client, server, [ipv4(number, 100) for number in range(20)])
    carry(server, client, [ipv4(number, 100) for number in range(20)])
    assert server.count(SENT) == client.count(SENT) == 0


def test_without_encryption_nothing_is_padded(make: Make) -> None:
    server = make("server", padding=True)
    client = make("client", port=server.port, client_id=1, session=1, padding=True)
    until(lambda: server.established() == client.established() == 1, server, client)
    packets = [ipv4(number, 100) for number in range(20)]
    carry(client, server, packets)
    assert server.packets() == packets and client.count(SENT) == server.count(RECEIVED) == 0
