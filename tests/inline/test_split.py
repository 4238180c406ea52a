"""Workers whose duties are processes of their own carry what whole workers carry, and each half may die alone."""

from __future__ import annotations

import time

import pytest

from pipeline.policy.epochs import EPOCH_NS
from pipeline.shm.layout import TRANSIT_EPOCH_ACKNOWLEDGED
from tests.inline.harness.ends import End, Make, carry, ipv4, number_of, pair, push, until
from tests.inline.harness.hub_ends import between, connected_hub, tls
from tests.inline.test_sealed import bulk, drops, light, sealed_pair

pytestmark = pytest.mark.usefixtures("patient")

BOTH = ("tun", "fec")
FEC = {"fec": "on", "connections": 3, "light_connections": 3}


def there_and_back(client: End, server: End) -> None:
    for sender, receiver in ((client, server), (server, client)):
        packets = bulk(range(10)) + light(range(20, 40))
        carry(sender, receiver, packets)
        assert sorted(receiver.packets(), key=number_of) == sorted(packets, key=number_of)


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("fec", [{}, FEC], ids=["off", "fec"])
def test_packets_pass_both_ways(make: Make, fec: dict, sealed: bool) -> None:
    settings = {"split": BOTH} | fec
    if sealed:
        server, client = sealed_pair(make, (2, 2), **settings)
    else:
        server = make("server", lanes=2, **settings)
        client = make("client", port=server.port, client_id=1, session=1, **settings)
        until(lambda: server.established() == client.established() > 0, server, client)
    assert {each.duties for each in server.plan.workers if each.kind != "tcp"} == {("inbound",), ("outbound",)}
    there_and_back(client, server)
    assert drops(client) == drops(server) == {}


def test_a_split_end_and_a_whole_one_understand_each_other(make: Make) -> None:
    server = make("server", split=BOTH, **FEC)
    client = make("client", port=server.port, client_id=1, session=1, **FEC)
    until(lambda: server.established() == client.established() == 6, server, client)
    there_and_back(client, server)


def test_a_hub_passes_packets_from_peer_to_peer(make: Make) -> None:
    server, one, two = connected_hub(make, split=BOTH)
    packets = between(1, 2, range(50))
    waiting = list(packets)
    until(lambda: push(one, waiting) and len(two.packets()) == len(packets), server, one, two)
    assert two.packets() == packets


@pytest.mark.parametrize("half", ["tun-out-0", "tun-in-0", "fec-out-0", "fec-in-0"])
def test_when_a_half_dies_its_successor_goes_on_and_the_other_half_never_stops(make: Make, half: str) -> None:
    server, client = sealed_pair(make, split=BOTH, **FEC)
    there_and_back(client, server)
    server.kill(half)
    for other in (client, server):
        for queue in other.received:
            queue.clear()
    server.start(half)
    there_and_back(client, server)


def test_an_epoch_that_was_opened_is_acknowledged_although_nothing_is_sent(make: Make) -> None:
    serving, dialling = tls()
    server = make("server", seals=True, tls=serving, split=BOTH)
    client = make("client", port=server.port, seals=True, tls=dialling, client_id=1, session=1, split=BOTH)
    until(lambda: server.established() == client.established() == 1, server, client)
    carry(client, server, light(range(5)))
    now = time.monotonic_ns()
    for epoch in range(1, 4):
        for _ in range(3):
            now += EPOCH_NS
            for end in (client, server):
                end.tick_epochs(now)
        carry(client, server, light(range(10 * epoch, 10 * epoch + 5)))
        words = client.memory.peer_table.transit_numbers[0]
        until(lambda: words[TRANSIT_EPOCH_ACKNOWLEDGED] & 0xFFFF == epoch, server, client)
    assert server.count("tun.packets_read") == 0 and drops(client) == drops(server) == {}


def test_compat_splits_its_tun_worker(make: Make) -> None:
    server, client = pair(make, compat=True, split=BOTH)
    packets = [ipv4(number) for number in range(30)]
    carry(client, server, packets)
    assert [packet[10:] for packet in server.packets()] == [packet[10:] for packet in packets]
